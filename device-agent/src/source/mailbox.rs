//! Between a reader thread that must never wait and a loop that may be slow: the latest reading wins,
//! events are queued up to a limit, and the thread's last sign of life is noted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_proto::inventory::Sampler;
use tokio::sync::Notify;

use super::Update;
use crate::model::{DeviceEvent, Reading};

/// Events that may wait. Full: the oldest goes, and is counted.
pub const EVENTS_MAX: usize = 1024;

#[derive(Debug)]
struct Content {
    reading: Option<Arc<Reading>>,
    events: VecDeque<DeviceEvent>,
    dropped: u64,
    sampler: Option<Sampler>,
    ended: Option<String>,
    alive: Instant,
}

/// The shared box.
#[derive(Debug)]
pub struct Mailbox {
    content: Mutex<Content>,
    wake: Notify,
}

impl Default for Mailbox {
    fn default() -> Self {
        let content = Content {
            reading: None,
            events: VecDeque::new(),
            dropped: 0,
            sampler: None,
            ended: None,
            alive: Instant::now(),
        };
        Self {
            content: Mutex::new(content),
            wake: Notify::new(),
        }
    }
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Content> {
        // The content is plain values; a panic between two assignments leaves nothing broken.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a reading; one that was not taken yet is replaced.
    pub fn put_reading(&self, reading: Reading) {
        let mut content = self.lock();
        content.reading = Some(Arc::new(reading));
        content.sampler = None;
        content.alive = Instant::now();
        drop(content);
        self.wake.notify_one();
    }

    /// Leaves an event.
    pub fn put_event(&self, event: DeviceEvent) {
        let mut content = self.lock();
        if content.events.len() >= EVENTS_MAX {
            content.events.pop_front();
            content.dropped = content.dropped.saturating_add(1);
        }
        content.events.push_back(event);
        content.alive = Instant::now();
        drop(content);
        self.wake.notify_one();
    }

    /// Leaves a state of the sampler.
    pub fn put_sampler(&self, sampler: Sampler) {
        let mut content = self.lock();
        content.sampler = Some(sampler);
        content.alive = Instant::now();
        drop(content);
        self.wake.notify_one();
    }

    /// Says that the thread ends, and why.
    pub fn end(&self, reason: String) {
        self.lock().ended = Some(reason);
        self.wake.notify_one();
    }

    /// A call into the library has returned.
    pub fn alive(&self) {
        self.lock().alive = Instant::now();
    }

    /// Time since the last sign of life.
    pub fn silence(&self) -> Duration {
        self.lock().alive.elapsed()
    }

    /// The next update, if there is one. Events come before the reading that shows their effect.
    pub fn take(&self) -> Option<Update> {
        let mut content = self.lock();
        if content.dropped > 0 {
            tracing::warn!(
                dropped = content.dropped,
                "device events were lost, the queue was full"
            );
            content.dropped = 0;
        }
        if let Some(event) = content.events.pop_front() {
            return Some(Update::Event(event));
        }
        if let Some(reading) = content.reading.take() {
            return Some(Update::Reading(reading));
        }
        if let Some(sampler) = content.sampler.take() {
            return Some(Update::Sampler(sampler));
        }
        content.ended.take().map(Update::Ended)
    }

    /// Waits until something was left.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::{EVENTS_MAX, Mailbox};
    use crate::model::{DeviceEvent, DeviceEventKind, Reading};
    use crate::source::Update;

    #[test]
    fn the_latest_reading_wins_and_events_are_bounded() {
        let mailbox = Mailbox::default();
        for code in 0..=EVENTS_MAX as u64 {
            let kind = DeviceEventKind::Xid(code);
            mailbox.put_event(DeviceEvent {
                gpu_uuid: None,
                instance: None,
                kind,
            });
        }
        mailbox.put_reading(Reading::default());
        mailbox.put_reading(Reading {
            gpus: vec![Default::default()],
            ..Reading::default()
        });
        let Some(Update::Event(first)) = mailbox.take() else {
            panic!("no event")
        };
        assert_eq!(first.kind, DeviceEventKind::Xid(1));
        let rest: Vec<_> = std::iter::from_fn(|| mailbox.take()).collect();
        assert_eq!(rest.len(), EVENTS_MAX);
        assert!(matches!(rest.last(), Some(Update::Reading(reading)) if reading.gpus.len() == 1));
    }
}
