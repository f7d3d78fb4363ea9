//! Who writes how much to the API server, from its own counters and from its audit log.
//!
//! The counters (`apiserver_request_total`) cost nothing and name resource, verb and status code. Only the audit log also names the
//! client; it is written when [`crate::ClusterBuilder::audit`] asks for it and costs the API server some processor time.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// One kind of write request.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteKind {
    /// The client's user agent up to the first slash, such as `kube-scheduler`; empty where the source does not tell.
    pub user_agent: String,
    /// The authenticated user, such as `system:serviceaccount:muster-system:muster`; empty where the source does not tell.
    pub user: String,
    /// The resource in plural, such as `pods`.
    pub resource: String,
    /// The subresource, such as `binding`; empty for the object itself.
    pub subresource: String,
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// The HTTP status code of the answer.
    pub code: u16,
}

/// Numbers of write requests by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    counts: BTreeMap<WriteKind, u64>,
}

impl Writes {
    /// All write requests, whatever their answer was.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Write requests that were answered with success: those that cost the store something.
    pub fn accepted(&self) -> u64 {
        self.count(|kind| (200..300).contains(&kind.code))
    }

    /// The number of write requests of the kinds that `select` picks.
    pub fn count(&self, select: impl Fn(&WriteKind) -> bool) -> u64 {
        self.counts
            .iter()
            .filter(|(kind, _)| select(kind))
            .map(|(_, count)| count)
            .sum()
    }

    /// Kinds with their numbers, in order of kind.
    pub fn iter(&self) -> impl Iterator<Item = (&WriteKind, u64)> {
        self.counts.iter().map(|(kind, count)| (kind, *count))
    }

    /// What came on top of `earlier`. A counter that fell (the API server was restarted) counts from zero.
    #[must_use]
    pub fn since(&self, earlier: &Writes) -> Writes {
        let counts = self
            .counts
            .iter()
            .map(|(kind, now)| {
                let before = earlier.counts.get(kind).copied().unwrap_or(0);
                (kind.clone(), now.checked_sub(before).unwrap_or(*now))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        Writes { counts }
    }

    fn add(&mut self, kind: WriteKind, count: u64) {
        let entry = self.counts.entry(kind).or_default();
        *entry = entry.saturating_add(count);
    }

    /// Reads the API server's metrics page.
    pub(crate) fn from_metrics(page: &str) -> Writes {
        let mut writes = Writes::default();
        for (labels, count) in request_counters(page) {
            let Some(verb) = write_verb(&labels.get("verb")) else {
                continue;
            };
            let kind = WriteKind {
                resource: labels.get("resource"),
                subresource: labels.get("subresource"),
                verb: verb.to_owned(),
                code: labels.get("code").parse().unwrap_or(0),
                ..WriteKind::default()
            };
            writes.add(kind, count);
        }
        writes
    }

    /// Reads an audit log from a byte position on.
    pub(crate) fn from_audit_log(path: &Path, from: AuditPosition) -> Result<Writes> {
        let what = || format!("read audit log {}", path.display());
        let mut file = std::fs::File::open(path).map_err(Error::io(what()))?;
        file.seek(SeekFrom::Start(from.0))
            .map_err(Error::io(what()))?;
        let mut writes = Writes::default();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(Error::io(what()))?;
            // The last line may still be in the writing; it is counted next time.
            let Ok(event) = serde_json::from_str::<AuditEvent>(&line) else {
                continue;
            };
            if let Some(kind) = event.write_kind() {
                writes.add(kind, 1);
            }
        }
        Ok(writes)
    }
}

/// The number of writes and lists so far, but for Leases, which are renewed for ever.
pub(crate) fn activity(page: &str) -> u64 {
    request_counters(page)
        .filter(|(labels, _)| labels.get("resource") != "leases")
        .filter(|(labels, _)| {
            labels.get("verb") == "LIST" || write_verb(&labels.get("verb")).is_some()
        })
        .fold(0, |sum, (_, count)| sum.saturating_add(count))
}

/// The labels of one line of a metrics page, as text.
struct Labels<'a>(&'a str);

impl Labels<'_> {
    /// A label's value; empty when it is not there. None of the values read here holds a comma or a quote.
    fn get(&self, name: &str) -> String {
        self.0
            .split("\",")
            .filter_map(|pair| pair.split_once("=\""))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.trim_end_matches('"').to_owned())
            .unwrap_or_default()
    }
}

fn request_counters(page: &str) -> impl Iterator<Item = (Labels<'_>, u64)> {
    page.lines().filter_map(|line| {
        let rest = line.strip_prefix("apiserver_request_total{")?;
        let (labels, value) = rest.rsplit_once("} ")?;
        // A float that counts: exact up to 2^53.
        let count = value.trim().parse::<f64>().unwrap_or(0.0) as u64;
        Some((Labels(labels), count))
    })
}

/// A place in the audit log, bytes from its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditPosition(pub(crate) u64);

/// The audit policy: one entry for each completed write, nothing for reads.
pub(crate) const AUDIT_POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
  omitManagedFields: true
- level: None
"#;

fn write_verb(verb: &str) -> Option<&'static str> {
    Some(match verb {
        "POST" | "create" => "create",
        "PUT" | "update" => "update",
        "PATCH" | "APPLY" | "patch" => "patch",
        "DELETE" | "delete" => "delete",
        "DELETECOLLECTION" | "deletecollection" => "deletecollection",
        _ => return None,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditEvent {
    #[serde(default)]
    verb: String,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    user: AuditUser,
    #[serde(default)]
    object_ref: AuditObject,
    #[serde(default)]
    response_status: AuditStatus,
}

#[derive(Deserialize, Default)]
struct AuditUser {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize, Default)]
struct AuditObject {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

#[derive(Deserialize, Default)]
struct AuditStatus {
    #[serde(default)]
    code: u16,
}

impl AuditEvent {
    fn write_kind(self) -> Option<WriteKind> {
        let verb = write_verb(&self.verb)?;
        Some(WriteKind {
            user_agent: self
                .user_agent
                .split('/')
                .next()
                .unwrap_or_default()
                .to_owned(),
            user: self.user.username,
            resource: self.object_ref.resource,
            subresource: self.object_ref.subresource,
            verb: verb.to_owned(),
            code: self.response_status.code,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# TYPE apiserver_request_total counter
apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="binding",verb="POST",version="v1"} 12
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="",verb="LIST",version="v1"} 99
apiserver_request_total{code="409",component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="status",verb="APPLY",version="v1"} 1.5e+01
"#;

    #[test]
    fn counters_of_writes_are_read_and_those_of_reads_are_not() {
        let writes = Writes::from_metrics(PAGE);
        assert_eq!(writes.total(), 27);
        assert_eq!(
            writes.count(|kind| kind.subresource == "binding" && kind.verb == "create"),
            12
        );
        assert_eq!(
            writes.count(|kind| kind.code == 409 && kind.verb == "patch"),
            15
        );
    }

    #[test]
    fn a_difference_survives_a_restarted_counter() {
        let now = Writes::from_metrics(PAGE);
        assert_eq!(now.since(&now).total(), 0);
        let mut earlier = now.clone();
        for count in earlier.counts.values_mut() {
            *count += 100;
        }
        assert_eq!(now.since(&earlier).total(), 27);
    }
}
