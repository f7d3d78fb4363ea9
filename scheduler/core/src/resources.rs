//! Amounts of CPU, memory, pods and extended resources. All sums saturate: an amount too large to
//! count is too large to place, never small.

use std::collections::BTreeMap;

use crate::ids::ResourceName;

/// What a pod asks for, or a node offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    /// CPU, thousandths of a core.
    pub milli_cpu: u64,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Ephemeral storage, bytes.
    pub ephemeral_bytes: u64,
    /// Pods: 1 in a request, the kubelet's limit in an offer.
    pub pods: u64,
    /// Everything else by name, in its own unit; entries of zero are not kept.
    pub extended: BTreeMap<ResourceName, u64>,
}

/// The first resource of which there is not enough.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// CPU.
    Cpu,
    /// Memory.
    Memory,
    /// Ephemeral storage.
    EphemeralStorage,
    /// The kubelet's limit of pods.
    Pods,
    /// An extended resource.
    Extended(ResourceName),
}

impl Resources {
    /// Amount of an extended resource; zero when it is not there.
    pub fn extended(&self, name: &str) -> u64 {
        self.extended.get(name).copied().unwrap_or(0)
    }

    /// Whether some amount has met the largest that can be counted.
    pub fn is_saturated(&self) -> bool {
        [
            self.milli_cpu,
            self.memory_bytes,
            self.ephemeral_bytes,
            self.pods,
        ]
        .into_iter()
        .chain(self.extended.values().copied())
        .any(|amount| amount == u64::MAX)
    }

    /// Adds `other`, saturating.
    pub fn add(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.saturating_add(other.milli_cpu);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.saturating_add(other.ephemeral_bytes);
        self.pods = self.pods.saturating_add(other.pods);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_insert(0);
            *mine = mine.saturating_add(*amount);
        }
    }

    /// Takes `other` away; an amount that is not there becomes zero.
    pub fn subtract(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.saturating_sub(other.milli_cpu);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.saturating_sub(other.ephemeral_bytes);
        self.pods = self.pods.saturating_sub(other.pods);
        for (name, amount) in &other.extended {
            if let Some(mine) = self.extended.get_mut(name) {
                *mine = mine.saturating_sub(*amount);
            }
        }
        self.extended.retain(|_, amount| *amount > 0);
    }

    /// Raises each amount to that of `other` where it is larger.
    pub fn raise_to(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.max(other.ephemeral_bytes);
        self.pods = self.pods.max(other.pods);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_insert(0);
            *mine = (*mine).max(*amount);
        }
    }

    /// Whether `request` fits in here; the first shortage otherwise, extended resources first,
    /// because a missing GPU says more than a missing core.
    pub fn shortage(&self, request: &Self) -> Option<Shortage> {
        for (name, amount) in &request.extended {
            if *amount > 0 && self.extended(name.as_str()) < *amount {
                return Some(Shortage::Extended(name.clone()));
            }
        }
        if self.milli_cpu < request.milli_cpu {
            return Some(Shortage::Cpu);
        }
        if self.memory_bytes < request.memory_bytes {
            return Some(Shortage::Memory);
        }
        if self.ephemeral_bytes < request.ephemeral_bytes {
            return Some(Shortage::EphemeralStorage);
        }
        if self.pods < request.pods {
            return Some(Shortage::Pods);
        }
        None
    }
}
