//! How objects are shown: whole, as a row of a table, or as metadata only.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::server::Target;
use super::store::Stored;
use super::{events, table};
use crate::value;

/// The representation that `Accept` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Render {
    /// The object as it is.
    Full,
    /// `as=Table`.
    Table,
    /// `as=PartialObjectMetadata(List)`.
    Metadata,
}

impl Render {
    /// The first representation in an `Accept` header that the server has.
    #[must_use]
    pub fn from_accept(accept: &str) -> Self {
        for part in accept.split(',') {
            if part.contains("as=Table") {
                return Self::Table;
            }
            if part.contains("as=PartialObjectMetadata") {
                return Self::Metadata;
            }
            if part.trim() == "application/json" {
                return Self::Full;
            }
        }
        Self::Full
    }

    /// One object as JSON text.
    #[must_use]
    pub fn object(self, target: &Target, stored: &Arc<Stored>) -> Bytes {
        match self {
            Self::Full if is_plain(target) => stored.text(),
            Self::Full => view(target, stored).to_string().into(),
            Self::Table => table::table(target, std::slice::from_ref(stored), None, "")
                .to_string()
                .into(),
            Self::Metadata => metadata(stored).to_string().into(),
        }
    }

    /// A list as JSON text.
    #[must_use]
    pub fn list(self, target: &Target, objects: &[Arc<Stored>], meta: &Value) -> Bytes {
        let (kind, version) = match self {
            Self::Table => {
                let mut whole = table::table(target, objects, None, "");
                value::set(&mut whole, &["metadata"], meta.clone());
                return whole.to_string().into();
            }
            Self::Metadata => (
                "PartialObjectMetadataList".to_owned(),
                "meta.k8s.io/v1".to_owned(),
            ),
            Self::Full => (
                format!("{}List", target.ty.kind),
                target.ty.api_version(&target.version),
            ),
        };
        let head = format!(
            "{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{meta},\"items\":["
        );
        let mut text = head.into_bytes();
        for (at, object) in objects.iter().enumerate() {
            if at > 0 {
                text.push(b',');
            }
            text.extend_from_slice(&self.object(target, object));
        }
        text.extend_from_slice(b"]}");
        text.into()
    }
}

fn is_plain(target: &Target) -> bool {
    target.ty.stored_as.is_none() && target.version == target.ty.version()
}

/// The object as the resource and version of the path show it.
#[must_use]
pub fn view(target: &Target, stored: &Stored) -> Value {
    let mut object = events::outgoing(&target.ty, &stored.value);
    value::set(
        &mut object,
        &["apiVersion"],
        target.ty.api_version(&target.version),
    );
    object
}

fn metadata(stored: &Stored) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": stored.value.get("metadata").cloned().unwrap_or_default()})
}
