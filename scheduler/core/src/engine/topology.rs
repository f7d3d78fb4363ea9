//! What gangs ask of the topology, by what is known of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Engine;
use super::gang::Gang;
use super::needs::role_of;
use crate::ids::RoleName;
use crate::pod::PodShape;
use crate::topology::{Segments, TopologyRequest};
use crate::workload::{InvalidWorkload, MemberSource};

impl Engine {
    /// What the gang asks of the topology: by annotations of its job or PodGroup, or of its first pod
    /// where it has neither.
    pub(super) fn topology_of(&self, gang: &Gang) -> Result<TopologyRequest, InvalidWorkload> {
        self.settings_of(gang).map_or_else(
            || Ok(TopologyRequest::default()),
            |settings| TopologyRequest::of(settings, &self.config.topology),
        )
    }

    /// Annotations and labels that the gang's policy is read from: those of its job or PodGroup, or of its first
    /// pod where it has neither.
    pub(super) fn settings_of<'a>(
        &'a self,
        gang: &'a Gang,
    ) -> Option<&'a BTreeMap<Arc<str>, Arc<str>>> {
        if let Some(workload) = &gang.workload {
            return Some(&workload.settings);
        }
        let first = self
            .alive(gang)
            .min_by_key(|pod| (pod.created_seconds, &pod.name, &pod.uid));
        first.map(|pod| &pod.settings)
    }

    /// The segments of a gang, by its roles as its job says them, or as its pods do.
    pub(super) fn segments_of(&self, gang: &Gang, topology: &TopologyRequest) -> Segments {
        let Some(segment) = topology.segment else {
            return Segments::default();
        };
        let job = gang.workload.as_ref().map(|workload| &workload.members);
        let roles: Vec<(RoleName, Arc<PodShape>, u32)> = match job {
            Some(MemberSource::Roles(specs)) => specs
                .iter()
                .map(|spec| (spec.name.clone(), Arc::clone(&spec.shape), spec.count))
                .collect(),
            _ => self.roles_of_pods(gang),
        };
        Segments::of_roles(roles, segment, &self.config)
    }

    /// Roles in order of name, each with the shape of its first pod and how many members it has by their
    /// indices.
    fn roles_of_pods(&self, gang: &Gang) -> Vec<(RoleName, Arc<PodShape>, u32)> {
        let mut roles: BTreeMap<RoleName, (Arc<PodShape>, u32, u32)> = BTreeMap::new();
        for pod in self.alive(gang) {
            let first = || (Arc::clone(&pod.shape), 0, 0);
            let (_, pods, most) = roles.entry(role_of(pod)).or_insert_with(first);
            *pods = pods.saturating_add(1);
            let index = pod.membership.as_ref().and_then(|member| member.index);
            *most = (*most).max(index.map_or(0, |index| index.saturating_add(1)));
        }
        roles
            .into_iter()
            .map(|(name, (shape, pods, most))| (name, shape, pods.max(most)))
            .collect()
    }
}
