//! Puts a device on the wire together: facts of the reading, verdict of the judge, holders of the kubelet, leaks.
//!
//! ```text
//! Reading + Judge + KubeletState + LeakWatch --assemble--> Vec<Device>
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_proto::inventory::{Device, Health};

use crate::health::table::State;
use crate::health::{Judge, Verdict};
use crate::kubelet::KubeletState;
use crate::model::Reading;

/// Memory in use up to which a device counts as unused, bytes. A guess: drivers and monitoring keep
/// some hundred MiB on a GPU without any job.
pub const LEAK_BYTES_MIN: u64 = 1 << 30;

/// Memory in use is told in steps of this size, rounded up, so that a job's small changes are no changes of the report.
const MEMORY_STEP_BYTES: u64 = 1 << 30;

/// Whether a device is used although no pod holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    /// It is not.
    Not,
    /// It was before, and nothing says that this has ended.
    Kept,
    /// It is.
    Yes,
}

/// Tells for how long a device has been used although no pod holds it.
#[derive(Debug, Clone)]
pub struct LeakWatch {
    after: Duration,
    since: BTreeMap<String, Duration>,
}

impl LeakWatch {
    /// A device counts as leaked once it has been used without a holder for `after`. Pods that
    /// terminate hold memory for seconds, so this is not zero.
    pub fn new(after: Duration) -> Self {
        Self {
            after,
            since: BTreeMap::new(),
        }
    }

    fn leaked(&mut self, now: Duration, uuid: &str, suspicion: Suspicion) -> bool {
        match suspicion {
            Suspicion::Not => {
                self.since.remove(uuid);
            }
            Suspicion::Kept => {}
            Suspicion::Yes => {
                self.since.entry(uuid.to_owned()).or_insert(now);
            }
        }
        let since = self.since.get(uuid);
        since.is_some_and(|since| now.saturating_sub(*since) >= self.after)
    }

    fn keep_only(&mut self, uuids: &BTreeSet<String>) {
        self.since.retain(|uuid, _| uuids.contains(uuid));
    }

    /// When a device may become leaked although nothing new is read.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        self.since
            .values()
            .filter_map(|since| since.checked_add(self.after))
            .filter(|at| *at > now)
            .min()
    }
}

/// The default resource names of which the kubelet offers some device of this node. What it lists under a
/// name is known to be all of that name only where it lists any that we know.
fn offered<'a>(reading: &'a Reading, kubelet: &KubeletState) -> BTreeSet<&'a str> {
    let gpus = reading.gpus.iter().filter(|gpu| !gpu.facts.partitioned);
    let slices = reading.gpus.iter().flat_map(|gpu| &gpu.slices);
    gpus.map(|gpu| &gpu.facts)
        .chain(slices.map(|slice| &slice.facts))
        .filter(|facts| kubelet.resource_of(facts).is_some())
        .map(|facts| facts.resource_name.as_str())
        .collect()
}

/// The devices to report, in the order of the reading.
pub fn assemble(
    now: Duration,
    reading: &Reading,
    kubelet: &KubeletState,
    judge: &mut Judge,
    leaks: &mut LeakWatch,
) -> Vec<Device> {
    let floor = judge.sampler_verdict(now);
    let offered = offered(reading, kubelet);
    let mut devices = Vec::new();
    for gpu in &reading.gpus {
        let verdict = judge.verdict(now, gpu, None).worse(&floor);
        let mut facts = gpu.facts.clone();
        if gpu.lost {
            // What was read of it before is not told as present.
            facts.memory_used_bytes = None;
        }
        let busy = if gpu.lost || !gpu.slices.is_empty() {
            Some(false)
        } else if gpu.unreadable {
            None
        } else {
            in_use(&facts, gpu.compute_pids.as_deref())
        };
        devices.push(finish(now, facts, verdict, busy, kubelet, &offered, leaks));
        for slice in &gpu.slices {
            let instance = slice
                .facts
                .mig
                .as_ref()
                .map(|mig| (mig.gpu_instance_id, mig.compute_instance_id));
            let verdict = judge.verdict(now, gpu, instance).worse(&floor);
            let busy = if gpu.lost {
                Some(false)
            } else if gpu.unreadable {
                None
            } else {
                in_use(&slice.facts, slice.compute_pids.as_deref())
            };
            devices.push(finish(
                now,
                slice.facts.clone(),
                verdict,
                busy,
                kubelet,
                &offered,
                leaks,
            ));
        }
    }
    let uuids = devices.iter().map(|device| device.uuid.clone()).collect();
    leaks.keep_only(&uuids);
    devices
}

/// The device plugin may know better, or may not have seen yet that a repaired GPU is well.
fn not_offered() -> Verdict {
    Verdict {
        state: State::Suspect,
        reason: "kubelet-not-offered".into(),
        detail: "the kubelet offers others of this kind and not this one: its device plugin calls it unhealthy".into(),
    }
}

/// Whether a device is used; `None` when nothing that tells could be read.
fn in_use(facts: &Device, pids: Option<&[u32]>) -> Option<bool> {
    let by_process = pids.map(|pids| !pids.is_empty());
    let by_memory = facts.memory_used_bytes.map(|used| used >= LEAK_BYTES_MIN);
    // `None` is less than either answer.
    by_process.max(by_memory)
}

fn finish(
    now: Duration,
    mut device: Device,
    verdict: Verdict,
    busy: Option<bool>,
    kubelet: &KubeletState,
    offered: &BTreeSet<&str>,
    leaks: &mut LeakWatch,
) -> Device {
    let resource = kubelet.resource_of(&device);
    let left_out = resource.is_none()
        && !device.partitioned
        && offered.contains(device.resource_name.as_str());
    let verdict = if left_out {
        verdict.worse(&not_offered())
    } else {
        verdict
    };
    device.health = Health::from(verdict.state).into();
    device.health_reason = verdict.reason;
    device.health_detail = verdict.detail;
    device.memory_used_bytes = device.memory_used_bytes.map(|used| {
        used.checked_next_multiple_of(MEMORY_STEP_BYTES)
            .unwrap_or(used)
    });
    device.holders = kubelet.holders_of(&device);
    if let Some(resource) = resource {
        device.resource_name = resource.to_owned();
    }
    // A claim that does not tell its GPU may be for this one: then nothing is called leaked. While the kubelet does
    // not answer nobody new is suspected, for a pod may have come; but whoever was suspected has not become free by that.
    let ownerless = device.holders.is_empty() && !kubelet.claims_unmatched;
    let suspicion = match busy {
        Some(true) if ownerless && kubelet.known => Suspicion::Yes,
        Some(true) | None if ownerless => Suspicion::Kept,
        _ => Suspicion::Not,
    };
    device.leaked = leaks.leaked(now, &device.uuid, suspicion);
    device
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_proto::inventory::{Device, Health, Holder, Sampler};
    use muster_proto::podresources::{
        AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerDevices,
        ContainerResources, DynamicResource, ListPodResourcesResponse, PodResources,
    };

    use super::{LeakWatch, assemble};
    use crate::fake::FakeNode;
    use crate::health::Judge;
    use crate::health::table::Table;
    use crate::kubelet::{DeviceId, KubeletState};
    use crate::profile::Profile;
    use crate::scenario::FaultEvent;

    struct Bench {
        node: FakeNode,
        judge: Judge,
        leaks: LeakWatch,
        kubelet: KubeletState,
    }

    impl Bench {
        fn new(profile: &str) -> Self {
            Self {
                node: FakeNode::new(Profile::load(profile).unwrap().shape_for("n"), "n"),
                judge: Judge::new(Table::embedded().unwrap()),
                leaks: LeakWatch::new(Duration::from_secs(15)),
                kubelet: KubeletState {
                    known: true,
                    ..KubeletState::default()
                },
            }
        }

        fn at(&mut self, at_s: u64, sampler: Sampler) -> Vec<Device> {
            let (now, reading) = (Duration::from_secs(at_s), self.node.reading());
            self.judge.reading(now, &reading);
            self.judge.sampler(now, sampler);
            assemble(
                now,
                &reading,
                &self.kubelet,
                &mut self.judge,
                &mut self.leaks,
            )
        }
    }

    #[test]
    fn a_used_gpu_without_a_pod_leaks_after_a_while_and_a_held_one_never() {
        let mut bench = Bench::new("h100-8");
        bench.node.apply(&FaultEvent::Leak { gpu: 5 });
        assert!(!bench.at(10, Sampler::Ok)[5].leaked);
        assert_eq!(
            bench.leaks.next_deadline(Duration::from_secs(10)),
            Some(Duration::from_secs(25))
        );
        assert!(!bench.at(24, Sampler::Ok)[5].leaked);
        assert!(bench.at(25, Sampler::Ok)[5].leaked);
        let uuid = bench.node.gpus[5].uuid.clone();
        bench.kubelet.holders.insert(
            DeviceId::Uuid(uuid),
            vec![Holder {
                pod: "p".into(),
                ..Holder::default()
            }],
        );
        let device = bench.at(26, Sampler::Ok).remove(5);
        assert!(!device.leaked && device.holders.len() == 1);
        bench.kubelet = KubeletState::default();
        bench.at(30, Sampler::Ok);
        assert!(
            !bench.at(90, Sampler::Ok)[5].leaked,
            "unknown holders are no leak"
        );
    }

    #[test]
    fn a_kubelet_that_does_not_answer_makes_no_gpu_free() {
        let mut bench = Bench::new("h100-8");
        for gpu in [4, 5, 6] {
            bench.node.apply(&FaultEvent::Leak { gpu });
        }
        let uuid = bench.node.gpus[4].uuid.clone();
        let holder = Holder {
            pod: "p".into(),
            ..Holder::default()
        };
        bench
            .kubelet
            .holders
            .insert(DeviceId::Uuid(uuid), vec![holder]);
        assert!(!bench.at(10, Sampler::Ok)[5].leaked);
        bench.kubelet.known = false;
        let devices = bench.at(20, Sampler::Ok);
        assert!(devices[4].holders.len() == 1 && !devices[4].leaked);
        // The clock goes on, and what has leaked stays so.
        assert!(bench.at(25, Sampler::Ok)[5].leaked);
        assert!(bench.at(90, Sampler::Ok)[5].leaked);
        // Whoever comes meanwhile may be a pod.
        bench.node.apply(&FaultEvent::Leak { gpu: 7 });
        bench.at(91, Sampler::Ok);
        assert!(!bench.at(190, Sampler::Ok)[7].leaked);
        // A GPU that is seen unused is free whoever is away.
        bench.node.apply(&FaultEvent::Back { gpu: Some(5) });
        let devices = bench.at(200, Sampler::Ok);
        assert!(!devices[5].leaked && devices[6].leaked);
        bench.kubelet.known = true;
        bench.at(201, Sampler::Ok);
        assert!(bench.at(216, Sampler::Ok)[7].leaked);
    }

    #[test]
    fn a_leak_is_not_over_because_neither_memory_nor_processes_can_be_read() {
        let mut bench = Bench::new("h100-8");
        bench.node.apply(&FaultEvent::Leak { gpu: 5 });
        bench.at(10, Sampler::Ok);
        assert!(bench.at(25, Sampler::Ok)[5].leaked);
        let mut reading = bench.node.reading();
        reading.gpus[5].facts.memory_used_bytes = None;
        reading.gpus[5].compute_pids = None;
        let devices = assemble(
            Duration::from_secs(30),
            &reading,
            &bench.kubelet,
            &mut bench.judge,
            &mut bench.leaks,
        );
        assert!(devices[5].leaked);
    }

    #[test]
    fn gpu_that_may_be_held_by_a_claim_is_not_called_leaked() {
        let mut bench = Bench::new("h100-8");
        bench.node.apply(&FaultEvent::Leak { gpu: 5 });
        bench.kubelet.claims_unmatched = true;
        bench.at(10, Sampler::Ok);
        assert!(!bench.at(90, Sampler::Ok)[5].leaked);
        bench.kubelet.claims_unmatched = false;
        bench.at(91, Sampler::Ok);
        assert!(bench.at(106, Sampler::Ok)[5].leaked);
    }

    /// The scheduler takes a device away from what is free whose holder is not charged with it.
    #[test]
    fn gpu_in_use_by_a_claim_is_told_with_its_pod_and_not_called_leaked() {
        let mut bench = Bench::new("h100-8");
        bench.node.apply(&FaultEvent::Leak { gpu: 5 });
        let claim = ClaimResource {
            cdi_devices: vec![CdiDevice {
                name: format!("nvidia.com/gpu={}", bench.node.gpus[5].uuid),
            }],
            driver_name: "gpu.nvidia.com".into(),
            ..ClaimResource::default()
        };
        let container = ContainerResources {
            dynamic_resources: vec![DynamicResource {
                claim_resources: vec![claim],
                ..DynamicResource::default()
            }],
            ..ContainerResources::default()
        };
        let pods = ListPodResourcesResponse {
            pod_resources: vec![PodResources {
                name: "notebook".into(),
                namespace: "team".into(),
                containers: vec![container],
            }],
        };
        let allocatable = AllocatableResourcesResponse {
            devices: vec![ContainerDevices {
                resource_name: "nvidia.com/gpu".into(),
                device_ids: bench.node.gpus.iter().map(|gpu| gpu.uuid.clone()).collect(),
                topology: None,
            }],
            ..AllocatableResourcesResponse::default()
        };
        bench.kubelet = KubeletState::from_answers(pods, allocatable);
        bench.at(10, Sampler::Ok);
        let devices = bench.at(90, Sampler::Ok);
        let told = &devices[5];
        assert!(!told.leaked);
        assert_eq!(told.resource_name, "nvidia.com/gpu");
        let holders: Vec<_> = told
            .holders
            .iter()
            .map(|holder| (holder.namespace.as_str(), holder.pod.as_str()))
            .collect();
        assert_eq!(holders, [("team", "notebook")]);
        assert!(
            devices
                .iter()
                .filter(|device| device.holders.is_empty())
                .count()
                == 7
        );
    }

    /// A kubelet that offers these devices, all under one name.
    fn offers<'a>(resource: &str, uuids: impl Iterator<Item = &'a String>) -> KubeletState {
        let devices = ContainerDevices {
            resource_name: resource.into(),
            device_ids: uuids.cloned().collect(),
            topology: None,
        };
        let allocatable = AllocatableResourcesResponse {
            devices: vec![devices],
            ..AllocatableResourcesResponse::default()
        };
        KubeletState::from_answers(ListPodResourcesResponse::default(), allocatable)
    }

    fn suspects(devices: &[Device]) -> Vec<(u32, &str)> {
        let suspect = i32::from(Health::Suspect);
        let found = devices.iter().filter(|device| device.health == suspect);
        found
            .map(|device| (device.index.unwrap(), device.health_reason.as_str()))
            .collect()
    }

    #[test]
    fn a_gpu_that_the_kubelet_leaves_out_is_suspect_until_it_is_offered() {
        let mut bench = Bench::new("h100-8");
        bench.node.apply(&FaultEvent::Lost { gpu: 6 });
        let uuids: Vec<String> = bench.node.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        let but = |left_out: &'static [usize]| {
            let all = uuids.iter().enumerate();
            all.filter(move |(at, _)| !left_out.contains(at))
                .map(|(_, uuid)| uuid)
        };
        // Nothing is listed: nothing is known.
        assert_eq!(suspects(&bench.at(1, Sampler::Ok)), []);
        bench.kubelet = offers("nvidia.com/gpu", but(&[3, 6]));
        let devices = bench.at(2, Sampler::Ok);
        assert_eq!(suspects(&devices), [(3, "kubelet-not-offered")]);
        assert_eq!(devices[6].health_reason, "lost", "the worse one is told");
        // An answer that is missing changes nothing, and another name of the resource neither.
        bench.kubelet.known = false;
        assert_eq!(suspects(&bench.at(3, Sampler::Ok)).len(), 1);
        bench.kubelet = offers("nvidia.com/gpu.shared", but(&[3, 6]));
        assert_eq!(suspects(&bench.at(4, Sampler::Ok)).len(), 1);
        bench.kubelet = offers("nvidia.com/gpu", but(&[6]));
        assert_eq!(suspects(&bench.at(5, Sampler::Ok)), []);
    }

    #[test]
    fn slices_that_the_kubelet_leaves_out_are_told_by_their_own_kind() {
        let mut bench = Bench::new("a100-8-mig");
        let slices: Vec<_> = bench.node.gpus.iter().flat_map(|gpu| &gpu.slices).collect();
        let of = |profile: &str| {
            let all = slices.iter().filter(|slice| slice.profile == profile);
            all.map(|slice| slice.uuid.clone()).collect::<Vec<_>>()
        };
        let small = of("1g.5gb");
        let others = slices.len() - small.len();
        bench.kubelet = offers("nvidia.com/mig-1g.5gb", small.iter().skip(1));
        let devices = bench.at(1, Sampler::Ok);
        // Of the other kinds none is offered, so nothing is known of them; the cut GPUs are never offered.
        assert!(others > 0);
        let left_out = suspects(&devices);
        assert_eq!(left_out.len(), 1);
        let told = devices.iter().find(|device| device.uuid == small[0]);
        assert_eq!(told.unwrap().health_reason, "kubelet-not-offered");
    }

    #[test]
    fn slices_follow_their_gpu() {
        let mut bench = Bench::new("a100-8-mig");
        bench.node.apply(&FaultEvent::Lost { gpu: 0 });
        let devices = bench.at(1, Sampler::Ok);
        assert_eq!(devices.len(), 56);
        assert!(devices[0].partitioned && !devices[1].partitioned);
        assert_eq!(devices[1].parent_uuid, devices[0].uuid);
        let lost = devices
            .iter()
            .filter(|device| device.health == i32::from(Health::Lost))
            .count();
        assert_eq!(lost, 8);
        assert_eq!(devices[1].resource_name, "nvidia.com/mig-1g.5gb");
    }

    #[test]
    fn a_hung_sampler_makes_nothing_better() {
        let mut bench = Bench::new("h100-8");
        bench.node.apply(&FaultEvent::Lost { gpu: 0 });
        let devices = bench.at(1, Sampler::Hung);
        assert_eq!(devices[0].health_reason, "lost");
        assert_eq!(
            (devices[1].health, devices[1].health_reason.as_str()),
            (Health::Suspect.into(), "sampler-hung")
        );
        assert_eq!(
            bench.at(2, Sampler::NoDriver)[1].health,
            i32::from(Health::Unhealthy)
        );
    }
}
