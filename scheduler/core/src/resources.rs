//! Amounts of CPU, memory, pods and extended resources. All sums saturate: an amount too large to
//! count is too large to place, never small.

use std::collections::BTreeMap;

use crate::ids::ResourceName;
use crate::planted;

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
            *mine = planted::sum(*mine, *amount);
        }
    }

    /// So many times as much, saturating.
    pub fn times(&self, count: u32) -> Self {
        let count = u64::from(count);
        let extended = self.extended.iter();
        let extended = extended.map(|(name, amount)| (name.clone(), amount.saturating_mul(count)));
        Self {
            milli_cpu: self.milli_cpu.saturating_mul(count),
            memory_bytes: self.memory_bytes.saturating_mul(count),
            ephemeral_bytes: self.ephemeral_bytes.saturating_mul(count),
            pods: self.pods.saturating_mul(count),
            extended: extended.collect(),
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

    /// Lowers each amount to that of `other` where it is smaller.
    pub fn lower_to(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.min(other.milli_cpu);
        self.memory_bytes = self.memory_bytes.min(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.min(other.ephemeral_bytes);
        self.pods = self.pods.min(other.pods);
        for (name, mine) in &mut self.extended {
            *mine = (*mine).min(other.extended(name.as_str()));
        }
        self.extended.retain(|_, amount| *amount > 0);
    }

    /// Whether `request` fits in here; the first shortage otherwise, extended resources first,
    /// because a missing GPU says more than a missing core.
    pub fn shortage(&self, request: &Self) -> Option<Shortage> {
        self.lack(request).map(Shortage::from)
    }

    /// The same, with the name as the request has it.
    pub(crate) fn lack<'r>(&self, request: &'r Self) -> Option<Lack<'r>> {
        let is_short = |(name, amount): &(&ResourceName, &u64)| {
            **amount > 0 && self.extended(name.as_str()) < **amount
        };
        if let Some((name, _)) = request.extended.iter().find(is_short) {
            return Some(Lack::Extended(name));
        }
        if self.milli_cpu < request.milli_cpu {
            return Some(Lack::Cpu);
        }
        if self.memory_bytes < request.memory_bytes {
            return Some(Lack::Memory);
        }
        if self.ephemeral_bytes < request.ephemeral_bytes {
            return Some(Lack::EphemeralStorage);
        }
        if self.pods < request.pods {
            return Some(Lack::Pods);
        }
        None
    }
}

/// As [`Shortage`]; of an extended resource the name as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lack<'r> {
    Cpu,
    Memory,
    EphemeralStorage,
    Pods,
    Extended(&'r ResourceName),
}

impl From<Lack<'_>> for Shortage {
    fn from(lack: Lack<'_>) -> Self {
        match lack {
            Lack::Cpu => Self::Cpu,
            Lack::Memory => Self::Memory,
            Lack::EphemeralStorage => Self::EphemeralStorage,
            Lack::Pods => Self::Pods,
            Lack::Extended(name) => Self::Extended(name.clone()),
        }
    }
}
