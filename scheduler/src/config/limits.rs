//! What every value of the file may be.

use super::{Config, InvalidConfig};
use crate::span::Span;

impl Config {
    /// Checks every value against its limits.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        text("schedulerName", &self.scheduler_name)?;
        text("agents.audience", &self.agents.audience)?;
        account("agents.serviceAccount", &self.agents.service_account)?;
        text("lease.namespace", &self.lease.namespace)?;
        text("lease.name", &self.lease.name)?;
        count(
            "deviceResources (entries)",
            self.device_resources.len(),
            1,
            64,
        )?;
        for name in &self.device_resources {
            text("deviceResources", name)?;
        }
        self.topology.check()?;
        self.check_spans()?;
        count(
            "gang.templateNodesMax",
            self.gang.template_nodes_max,
            0,
            1024,
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
        let (second, tenth) = (Span::secs(1), Span(std::time::Duration::from_millis(100)));
        let half_bind = Span(self.extender.bind_timeout.0 / 2);
        span(
            "inventory.reportAgeMax",
            self.inventory.report_age_max,
            Span::secs(5),
            hour,
        )?;
        span(
            "extender.bindTimeout",
            self.extender.bind_timeout,
            Span::secs(2),
            hour,
        )?;
        span("gang.gatherMax", self.gang.gather_max, second, half_bind)?;
        span(
            "gang.gatherQuietMax",
            self.gang.gather_quiet_max,
            second,
            hour,
        )?;
        span("gang.repairMax", self.gang.repair_max, second, hour)?;
        span(
            "gang.refusalGrace",
            self.gang.refusal_grace,
            Span::secs(0),
            hour,
        )?;
        span("gang.retryAfter", self.gang.retry_after, tenth, hour)?;
        span(
            "gang.refusedNodeFor",
            self.gang.refused_node_for,
            second,
            Span::secs(86_400),
        )?;
        span("gang.settle", self.gang.settle, tenth, hour)?;
        span(
            "writes.attemptTimeout",
            self.writes.attempt_timeout,
            tenth,
            self.writes.deadline,
        )?;
        span(
            "writes.deadline",
            self.writes.deadline,
            tenth,
            // The last of the held Binds is written within the time of the first.
            Span(
                self.extender
                    .bind_timeout
                    .0
                    .saturating_sub(self.gang.gather_max.0),
            ),
        )?;
        span(
            "watch.backoffFirst",
            self.watch.backoff_first,
            Span::secs(0),
            hour,
        )?;
        span(
            "watch.backoffMax",
            self.watch.backoff_max,
            self.watch.backoff_first,
            hour,
        )?;
        span(
            "watch.unhealthyAfter",
            self.watch.unhealthy_after,
            second,
            hour,
        )?;
        span(
            "watch.rediscoverEvery",
            self.watch.rediscover_every,
            second,
            hour,
        )?;
        span(
            "agents.heartbeatEvery",
            self.agents.heartbeat_every,
            second,
            self.inventory.report_age_max,
        )?;
        span(
            "agents.streamAgeMax",
            self.agents.stream_age_max,
            Span::secs(10),
            Span::secs(86_400),
        )?;
        span("lease.duration", self.lease.duration, second, hour)?;
        span(
            "lease.renewDeadline",
            self.lease.renew_deadline,
            tenth,
            below(self.lease.duration),
        )?;
        span(
            "lease.retryPeriod",
            self.lease.retry_period,
            tenth,
            below(self.lease.renew_deadline),
        )
    }
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

/// A ServiceAccount's user name.
fn account(key: &'static str, value: &str) -> Result<(), InvalidConfig> {
    text(key, value)?;
    let parts: Vec<&str> = value.split(':').collect();
    match parts.as_slice() {
        ["system", "serviceaccount", namespace, name]
            if !namespace.is_empty() && !name.is_empty() =>
        {
            Ok(())
        }
        _ => Err(InvalidConfig::OutOfRange {
            key,
            value: format!("\"{}\"", value.chars().take(64).collect::<String>()),
            limit: "must be system:serviceaccount:NAMESPACE:NAME".into(),
        }),
    }
}

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
        limit: format!("must be {min} to {max}"),
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
