//! What gangs ask of the topology, and in which segment each member is.

use super::Engine;
use super::gang::{Gang, Seat};
use crate::pod::PodShape;
use crate::topology::TopologyRequest;
use crate::workload::{InvalidWorkload, MEMBERS_MAX, MemberSource};

impl Engine {
    /// What the gang asks of the topology: by annotations of its job or PodGroup, or of its first pod
    /// where it has neither.
    pub(super) fn topology_of(&self, gang: &Gang) -> Result<TopologyRequest, InvalidWorkload> {
        let levels = &self.config.topology;
        if let Some(workload) = &gang.workload {
            return TopologyRequest::of(&workload.settings, levels);
        }
        let first = self
            .alive(gang)
            .min_by_key(|pod| (pod.created_seconds, &pod.name, &pod.uid));
        first.map_or_else(
            || Ok(TopologyRequest::default()),
            |pod| TopologyRequest::of(&pod.settings, levels),
        )
    }

    /// Number of the segment that a member is in. Members of one shape are counted through role by role,
    /// as they are ranked; those without devices are in none.
    pub(super) fn segment_of(
        &self,
        gang: &Gang,
        seat: &Seat,
        shape: &PodShape,
        topology: &TopologyRequest,
    ) -> Option<u32> {
        let segment = topology.segment?;
        let mut extended = shape.requests.extended.keys();
        if !extended.any(|name| self.config.is_device(name)) {
            return None;
        }
        let (role, index) = seat;
        let (mut class, mut before) = (0u32, 0u32);
        if let Some(MemberSource::Roles(specs)) =
            gang.workload.as_ref().map(|workload| &workload.members)
        {
            let at = specs.iter().position(|spec| spec.name == *role)?;
            let own = specs.get(at)?;
            let alike = |spec: &&crate::workload::RoleSpec| spec.shape == own.shape;
            before = specs
                .iter()
                .take(at)
                .filter(alike)
                .fold(0, |sum, spec| sum.saturating_add(spec.count));
            class = u32::try_from(specs.iter().position(|spec| alike(&spec))?).ok()?;
        }
        // No gang has more members than that, so that no two classes share a number.
        let rank = before.saturating_add(*index).min(MEMBERS_MAX);
        let number = rank.checked_div(segment.size)?;
        Some(
            class
                .saturating_mul(MEMBERS_MAX.saturating_add(1))
                .saturating_add(number),
        )
    }
}
