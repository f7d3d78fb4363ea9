//! What every value of the file may be.

use super::{
    Agents, Config, Extender, Gang, InvalidConfig, Inventory, Lease, Watch, Writes, names,
};
use crate::span::{SPAN_MAX, Span};

impl Config {
    /// Checks every value against its limits.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        text("schedulerName", &self.scheduler_name)?;
        text("agents.audience", &self.agents.audience)?;
        names::account("agents.serviceAccount", &self.agents.service_account)?;
        names::namespace("lease.namespace", &self.lease.namespace)?;
        names::object("lease.name", &self.lease.name)?;
        if !self.extender.client_name.is_empty() {
            names::object("extender.clientName", &self.extender.client_name)?;
        }
        count(
            "deviceResources (entries)",
            self.device_resources.len(),
            1,
            64,
        )?;
        for name in &self.device_resources {
            names::resource("deviceResources", name)?;
        }
        self.topology.check()?;
        self.check_spans()?;
        count(
            "gang.templateNodesMax",
            self.gang.template_nodes_max,
            0,
            1024,
        )?;
        let percent = usize::try_from(self.inventory.quarantine_percent_max);
        count(
            "inventory.quarantinePercentMax",
            percent.unwrap_or(usize::MAX),
            0,
            100,
        )?;
        let nodes = usize::try_from(self.inventory.quarantine_nodes_max);
        count(
            "inventory.quarantineNodesMax",
            nodes.unwrap_or(usize::MAX),
            0,
            100_000,
        )?;
        count("writes.inFlightMax", self.writes.in_flight_max, 1, 4096)?;
        count(
            "extender.bindsHeldMax",
            self.extender.binds_held_max,
            1,
            65_536,
        )?;
        count(
            "extender.bodyBytesMax",
            self.extender.body_bytes_max,
            64 << 10,
            256 << 20,
        )?;
        count(
            "extender.connectionsMax",
            self.extender.connections_max,
            1,
            65_536,
        )?;
        count("agents.streamsMax", self.agents.streams_max, 1, 100_000)?;
        let reviews = usize::try_from(self.agents.token_reviews_per_second).unwrap_or(usize::MAX);
        count("agents.tokenReviewsPerSecond", reviews, 1, 10_000)
    }

    fn check_spans(&self) -> Result<(), InvalidConfig> {
        let hour = Span::secs(3600);
        let day = Span::secs(86_400);
        let (second, tenth) = (Span::secs(1), Span(std::time::Duration::from_millis(100)));
        let alone = [
            (
                "inventory.reportAgeMax",
                self.inventory.report_age_max,
                Span::secs(5),
                hour,
            ),
            (
                "inventory.quarantineWindow",
                self.inventory.quarantine_window,
                second,
                day,
            ),
            (
                "extender.bindTimeout",
                self.extender.bind_timeout,
                Span::secs(2),
                hour,
            ),
            (
                "gang.gatherQuietMax",
                self.gang.gather_quiet_max,
                second,
                hour,
            ),
            (
                "queue.reserveAfter",
                self.queue.reserve_after,
                Span::secs(0),
                Span(SPAN_MAX),
            ),
            (
                "queue.keepFor",
                self.queue.keep_for,
                Span::secs(0),
                Span(SPAN_MAX),
            ),
            ("gang.repairMax", self.gang.repair_max, second, hour),
            (
                "gang.gpuFailureGrace",
                self.gang.gpu_failure_grace,
                second,
                day,
            ),
            (
                "gang.refusalGrace",
                self.gang.refusal_grace,
                Span::secs(0),
                hour,
            ),
            ("gang.retryAfter", self.gang.retry_after, tenth, hour),
            (
                "gang.refusedNodeFor",
                self.gang.refused_node_for,
                second,
                day,
            ),
            ("gang.settle", self.gang.settle, tenth, hour),
            (
                "watch.backoffFirst",
                self.watch.backoff_first,
                Span::secs(0),
                hour,
            ),
            (
                "watch.unhealthyAfter",
                self.watch.unhealthy_after,
                second,
                hour,
            ),
            (
                "watch.rediscoverEvery",
                self.watch.rediscover_every,
                second,
                hour,
            ),
            (
                "agents.streamAgeMax",
                self.agents.stream_age_max,
                Span::secs(10),
                day,
            ),
            ("lease.duration", self.lease.duration, second, hour),
        ];
        for (key, value, min, max) in alone {
            span(key, value, min, max)?;
        }
        self.check_writing()?;
        self.check_watching()?;
        self.check_lease()
    }

    /// How long things take that are waited for by kube-scheduler.
    fn check_writing(&self) -> Result<(), InvalidConfig> {
        let (second, tenth) = (Span::secs(1), Span(std::time::Duration::from_millis(100)));
        let bind = Timed {
            key: "extender.bindTimeout",
            value: self.extender.bind_timeout,
            default: Extender::default().bind_timeout,
        };
        let gather = Timed {
            key: "gang.gatherMax",
            value: self.gang.gather_max,
            default: Gang::default().gather_max,
        };
        let deadline = Timed {
            key: "writes.deadline",
            value: self.writes.deadline,
            default: Writes::default().deadline,
        };
        let attempt = Timed {
            key: "writes.attemptTimeout",
            value: self.writes.attempt_timeout,
            default: Writes::default().attempt_timeout,
        };
        let most = Most {
            span: Span(bind.value.0 / 2),
            how: "half of extender.bindTimeout",
            needs: Span(gather.value.0.saturating_mul(2)),
        };
        gather.within(second, most, &bind)?;
        // The last of the held Binds is written within the time of the first.
        let most = Most {
            span: Span(bind.value.0.saturating_sub(gather.value.0)),
            how: "extender.bindTimeout less gang.gatherMax",
            needs: Span(gather.value.0.saturating_add(deadline.value.0)),
        };
        deadline.within(tenth, most, &bind)?;
        let most = Most {
            span: deadline.value,
            how: "writes.deadline",
            needs: attempt.value,
        };
        attempt.within(tenth, most, &deadline)
    }

    fn check_watching(&self) -> Result<(), InvalidConfig> {
        let first = Timed {
            key: "watch.backoffFirst",
            value: self.watch.backoff_first,
            default: Watch::default().backoff_first,
        };
        let longest = Timed {
            key: "watch.backoffMax",
            value: self.watch.backoff_max,
            default: Watch::default().backoff_max,
        };
        span(longest.key, longest.value, Span::secs(0), Span::secs(3600))?;
        let most = Most {
            span: longest.value,
            how: "watch.backoffMax",
            needs: first.value,
        };
        first.within(Span::secs(0), most, &longest)?;
        let beat = Timed {
            key: "agents.heartbeatEvery",
            value: self.agents.heartbeat_every,
            default: Agents::default().heartbeat_every,
        };
        let age = Timed {
            key: "inventory.reportAgeMax",
            value: self.inventory.report_age_max,
            default: Inventory::default().report_age_max,
        };
        let most = Most {
            span: age.value,
            how: "inventory.reportAgeMax",
            needs: beat.value,
        };
        beat.within(Span::secs(1), most, &age)
    }

    fn check_lease(&self) -> Result<(), InvalidConfig> {
        let tenth = Span(std::time::Duration::from_millis(100));
        let default = Lease::default();
        let duration = Timed {
            key: "lease.duration",
            value: self.lease.duration,
            default: default.duration,
        };
        let renew = Timed {
            key: "lease.renewDeadline",
            value: self.lease.renew_deadline,
            default: default.renew_deadline,
        };
        let retry = Timed {
            key: "lease.retryPeriod",
            value: self.lease.retry_period,
            default: default.retry_period,
        };
        let most = Most {
            span: below(duration.value),
            how: "less than lease.duration",
            needs: above(renew.value),
        };
        renew.within(tenth, most, &duration)?;
        let most = Most {
            span: below(renew.value),
            how: "less than lease.renewDeadline",
            needs: above(retry.value),
        };
        retry.within(tenth, most, &renew)
    }
}

/// A span that is bounded by another one.
struct Timed {
    key: &'static str,
    value: Span,
    default: Span,
}

/// How far it may go.
struct Most<'a> {
    span: Span,
    /// Where that comes from.
    how: &'a str,
    /// What the other one would have to be at least.
    needs: Span,
}

impl Timed {
    /// Between `min` and `most`, which comes from `other`. The one that was set is blamed: where this one is as
    /// it always is and the other is not, that is what has to be looked at.
    fn within(&self, min: Span, most: Most<'_>, other: &Self) -> Result<(), InvalidConfig> {
        if (min..=most.span).contains(&self.value) {
            return Ok(());
        }
        if self.value == self.default && other.value != other.default {
            return Err(InvalidConfig::OutOfRange {
                key: other.key,
                value: other.value.to_string(),
                limit: format!(
                    "must be at least {}, or {}, which is {}, be made shorter",
                    most.needs, self.key, self.value
                ),
            });
        }
        Err(InvalidConfig::OutOfRange {
            key: self.key,
            value: self.value.to_string(),
            limit: format!("must be {min} to {}, {}", most.span, most.how),
        })
    }
}

fn above(span: Span) -> Span {
    Span(span.0.saturating_add(std::time::Duration::from_millis(1)))
}

fn below(span: Span) -> Span {
    Span(span.0.saturating_sub(std::time::Duration::from_millis(1)))
}

pub(super) fn text(key: &'static str, value: &str) -> Result<(), InvalidConfig> {
    if value.is_empty() || value.len() > 253 {
        return Err(InvalidConfig::OutOfRange {
            key,
            value: format!("\"{}\"", value.chars().take(64).collect::<String>()),
            limit: "1 to 253 characters".into(),
        });
    }
    Ok(())
}

/// What the number at this key counts.
pub(super) fn unit_of(key: &str) -> Option<&'static str> {
    Some(match key {
        "inventory.quarantinePercentMax" => "percent",
        "gang.templateNodesMax" | "inventory.quarantineNodesMax" => "nodes",
        "writes.inFlightMax" => "writes",
        "extender.bindsHeldMax" => "Binds",
        "extender.bodyBytesMax" => "bytes",
        "extender.connectionsMax" => "connections",
        "agents.streamsMax" => "streams",
        "agents.tokenReviewsPerSecond" => "TokenReviews a second",
        _ => return None,
    })
}

/// A number of entries, or of what [`unit_of`] says.
pub(super) fn count(
    key: &'static str,
    value: usize,
    min: usize,
    max: usize,
) -> Result<(), InvalidConfig> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InvalidConfig::OutOfRange {
        key,
        value: value.to_string(),
        limit: format!(
            "must be {min} to {max} {}",
            unit_of(key).unwrap_or("entries")
        ),
    })
}

fn span(key: &'static str, value: Span, min: Span, max: Span) -> Result<(), InvalidConfig> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InvalidConfig::OutOfRange {
        key,
        value: value.to_string(),
        limit: format!("must be {min} to {max}"),
    })
}
