//! What can be wrong with a dump.

/// Why a dump is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no JSON, has an unknown key, or a value of the wrong type.
    #[error("{path}: {said}")]
    Malformed {
        /// Path of the field.
        path: String,
        /// What is wrong, with line and column.
        said: String,
    },
    /// A value that no scheduler writes.
    #[error("{path} is {value}: {limit}")]
    Field {
        /// Path of the field.
        path: String,
        /// The value that it has, shortened to 64 characters.
        value: String,
        /// What is allowed.
        limit: String,
    },
}

impl Error {
    pub(crate) fn field(
        path: impl Into<String>,
        value: impl ToString,
        limit: impl Into<String>,
    ) -> Self {
        Self::Field {
            path: path.into(),
            value: value.to_string().chars().take(64).collect(),
            limit: limit.into(),
        }
    }
}
