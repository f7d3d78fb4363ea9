//! Names and identities. Cheap to clone, ordered, and not to be mixed up with one another.

use std::fmt;
use std::sync::Arc;

use crate::sharing::Shared;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Takes the text from `known` if it is there.
            pub fn share(&mut self, known: &mut Shared<str>) {
                known.share_in(&mut self.0);
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(Arc::from(text))
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(Arc::from(text))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// `metadata.name` of a Node.
    NodeName
);
text_id!(
    /// `metadata.uid` of a Pod.
    PodUid
);
text_id!(
    /// A namespace.
    Namespace
);
text_id!(
    /// Kubernetes resource name, for example `nvidia.com/gpu`.
    ResourceName
);
text_id!(
    /// UUID of a whole GPU or of a MIG slice.
    DeviceUuid
);
text_id!(
    /// Role of a gang's member: `Master`, `Worker`, or a name given by a label.
    RoleName
);
text_id!(
    /// `metadata.resourceVersion`.
    ResourceVersion
);

impl ResourceVersion {
    /// Whether this is surely a later version of the same object. Kubernetes writes them as numbers
    /// that grow; of anything else nothing is known.
    pub fn is_after(&self, other: &Self) -> bool {
        let number = |version: &Self| version.as_str().parse::<u64>().ok();
        number(self)
            .zip(number(other))
            .is_some_and(|(this, other)| this > other)
    }
}
text_id!(
    /// Id of one plan of one gang, unique within the cluster: `e<epoch>-<counter>`.
    PlanId
);

/// Number of a leadership; grows with every change of leader and never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Who a gang is: the namespace and the UID of the object that owns its members.
///
/// The UID is that of the job, of the PodGroup where no job is known, of the pod for a gang of one.
/// A gang that exists by label alone has no object; its `uid` is `label/<value>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GangKey {
    /// Namespace of the gang and of every member.
    pub namespace: Namespace,
    /// UID of the owner, or `label/<value>`.
    pub uid: Arc<str>,
}

impl GangKey {
    /// A key from its two parts.
    pub fn new(namespace: &str, uid: &str) -> Self {
        Self {
            namespace: namespace.into(),
            uid: Arc::from(uid),
        }
    }

    /// Takes both parts from `known` if they are there.
    pub fn share(&mut self, known: &mut Shared<str>) {
        self.namespace.share(known);
        known.share_in(&mut self.uid);
    }

    /// The key of a gang that exists by label alone.
    pub fn labelled(namespace: &str, value: &str) -> Self {
        Self::new(namespace, &format!("label/{value}"))
    }
}

impl fmt::Display for GangKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.uid)
    }
}
