//! Names and label keys as Kubernetes takes them: what it would refuse would match nothing here.
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/> and `labels/` beside it.

use super::InvalidConfig;

/// Longest DNS label, and longest name of a label key or resource, characters.
const LABEL_MAX: usize = 63;
/// Longest DNS subdomain, characters.
const SUBDOMAIN_MAX: usize = 253;

/// A namespace: a DNS label.
pub(super) fn namespace(key: &'static str, value: &str) -> Result<(), InvalidConfig> {
    let limit =
        "must be a namespace: 1 to 63 of a-z, 0-9 and -, beginning and ending with a-z or 0-9";
    check(key, value, is_dns_label(value), limit)
}

/// The name of an object: a DNS subdomain.
pub(super) fn object(key: &'static str, value: &str) -> Result<(), InvalidConfig> {
    let limit = "must be a name: 1 to 253 of a-z, 0-9, - and ., each part beginning and ending with a-z or 0-9";
    check(key, value, is_subdomain(value), limit)
}

/// The key of a label: `rack` or `example.com/rack`.
pub(super) fn label(key: &'static str, value: &str) -> Result<(), InvalidConfig> {
    let limit = "must be a label key: 1 to 63 of A-Z, a-z, 0-9, -, _ and ., beginning and ending with a letter or a \
                 number, after a DNS name and / if it has one";
    check(key, value, is_qualified(value), limit)
}

/// The name of a resource, or its beginning and `*`.
pub(super) fn resource(key: &'static str, value: &str) -> Result<(), InvalidConfig> {
    let limit = "must be the name of a resource like nvidia.com/gpu, or the beginning of one and *";
    // What stands for the rest may be anything that a name may go on with.
    let whole = value
        .strip_suffix('*')
        .map_or_else(|| value.to_owned(), |start| format!("{start}0"));
    let is_named = value.len() <= SUBDOMAIN_MAX + 1 + LABEL_MAX && is_qualified(&whole);
    check(key, value, is_named, limit)
}

/// A ServiceAccount's user name.
pub(super) fn account(key: &'static str, value: &str) -> Result<(), InvalidConfig> {
    let parts: Vec<&str> = value.split(':').collect();
    let is_account = match parts.as_slice() {
        ["system", "serviceaccount", namespace, name] => {
            is_dns_label(namespace) && is_subdomain(name)
        }
        _ => false,
    };
    check(
        key,
        value,
        is_account,
        "must be system:serviceaccount:NAMESPACE:NAME",
    )
}

fn check(key: &'static str, value: &str, is: bool, limit: &str) -> Result<(), InvalidConfig> {
    if is {
        return Ok(());
    }
    Err(InvalidConfig::OutOfRange {
        key,
        value: format!("\"{}\"", value.chars().take(64).collect::<String>()),
        limit: limit.to_owned(),
    })
}

fn ends(value: &str, is: impl Fn(char) -> bool) -> bool {
    value.chars().next().is_some_and(&is) && value.chars().next_back().is_some_and(&is)
}

fn is_lower(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_dns_part(value: &str) -> bool {
    value.chars().all(|c| is_lower(c) || c == '-') && ends(value, is_lower)
}

fn is_dns_label(value: &str) -> bool {
    value.len() <= LABEL_MAX && is_dns_part(value)
}

fn is_subdomain(value: &str) -> bool {
    value.len() <= SUBDOMAIN_MAX && value.split('.').all(is_dns_part)
}

fn is_qualified(value: &str) -> bool {
    let (prefix, name) = match value.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, value),
    };
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    prefix.is_none_or(is_subdomain)
        && name.len() <= LABEL_MAX
        && name.chars().all(is_part)
        && ends(name, |c| c.is_ascii_alphanumeric())
}
