//! Which node a caller is: by TokenReview, or by its own word on an insecure loopback door.
//!
//! The node named in a token says only where its pod runs: any pod may ask for a token with our
//! audience. So the token must also be one of the agents' own ServiceAccount.
//!
//! A review's answer is kept until the token expires, under a keyed 128-bit hash of the token.
//! Reviews are limited per second and at once: agents that all come back together wait their turn
//! instead of flooding the API server. Whose turn is further away than a call may wait is told when
//! to come again, each a little later than the one before: a call that is turned away without that
//! would come back at random, over and over, each time with a TLS handshake.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::clock::Wall;
use crate::config;
use crate::locked;
use crate::metrics::Metrics;

/// Key of the node's name in the review's user info.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// How long an answer is kept when the token does not say when it expires.
const KEPT_WITHOUT_EXPIRY: Duration = Duration::from_secs(60);
/// How long an answer is kept at most: a token can be taken back before it expires.
const KEPT_MAX: Duration = Duration::from_secs(3600);
/// Answers kept; beyond that the expired ones go, and then all.
const KEPT_COUNT_MAX: usize = 65_536;
/// Time for one review, once it is its turn.
const REVIEW_MAX: Duration = Duration::from_secs(4);
/// Longest wait of a call for its turn. Agents give a call 10 s, connection and review included.
const TURN_MAX: Duration = Duration::from_secs(4);
/// Reviews at once. An API server that needs long for each is not asked for more.
const REVIEWS_AT_ONCE: usize = 64;
/// Longest wait for one of those, once it is its turn.
const LINE_MAX: Duration = Duration::from_millis(500);
/// Longest time after which a call is told to come again. Nothing is proven of a call that is told so: many
/// that prove nothing must not keep the others away.
const LATER_MAX: Duration = Duration::from_secs(40);
/// How far ahead of our clock a node's may be, microseconds: one day. Instances are times of the
/// node's clock; one far in the future would keep every later agent of the node out.
const INSTANCE_AHEAD_MAX_US: i64 = 24 * 3600 * 1_000_000;
/// Longest token, bytes.
const TOKEN_MAX: usize = 16 * 1024;

/// Who a caller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// This node, proven, until then.
    Node {
        /// `metadata.name` of the node.
        name: Arc<str>,
        /// When the proof expires.
        until: Instant,
    },
    /// Whoever it says it is: the door is on loopback and insecure by choice.
    Believed,
}

#[derive(Debug)]
struct Kept {
    name: Arc<str>,
    until: Instant,
}

/// Why it is not known who a caller is.
#[derive(Clone, Debug)]
pub enum Unknown {
    /// It proves nothing, or could not be asked about.
    Refused(Box<Status>),
    /// Too many come at once; its turn comes after so long.
    Later(Duration),
}

impl From<Status> for Unknown {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl From<Unknown> for Status {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::Refused(status) => *status,
            Unknown::Later(_) => Self::unavailable("too many agents connect at once, try again"),
        }
    }
}

/// Whose turn it is, by time.
#[derive(Debug)]
struct Turns {
    /// From when on nobody has a turn yet.
    free_from: Instant,
    /// From when on nobody was told to come.
    told_until: Instant,
}

impl Turns {
    /// The next turn; `Err` is after how long to come again.
    fn take(&mut self, every: Duration, now: Instant) -> Result<Instant, Duration> {
        let turn = self.free_from.max(now);
        if turn.saturating_duration_since(now) <= TURN_MAX {
            self.free_from = turn + every;
            return Ok(turn);
        }
        Err(self.tell(every, now))
    }

    /// After how long to come again: each a little later than the one before, and from the beginning again
    /// where that would be too long.
    fn tell(&mut self, every: Duration, now: Instant) -> Duration {
        let next = self.told_until.max(self.free_from).max(now) + every;
        let is_too_late = next.saturating_duration_since(now) > LATER_MAX;
        self.told_until = if is_too_late { now + every } else { next };
        self.told_until.saturating_duration_since(now)
    }
}

/// Finds out who callers are.
pub struct Identities {
    reviews: Option<Reviews>,
}

struct Reviews {
    client: Client,
    audience: String,
    account: Account,
    /// Time between two reviews.
    every: Duration,
    at_once: Semaphore,
    wall: Wall,
    metrics: Arc<Metrics>,
    keys: (RandomState, RandomState),
    kept: Mutex<BTreeMap<(u64, u64), Kept>>,
    turns: Mutex<Turns>,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities")
            .field("reviewed", &self.reviews.is_some())
            .finish()
    }
}

impl Identities {
    /// Callers are believed.
    pub fn believed() -> Self {
        Self { reviews: None }
    }

    /// Callers are reviewed, as `settings` say.
    pub fn reviewed(
        client: Client,
        settings: &config::Agents,
        wall: Wall,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            reviews: Some(Reviews {
                client,
                audience: settings.audience.clone(),
                account: Account::of(&settings.service_account),
                every: Duration::from_secs(1) / settings.token_reviews_per_second.max(1),
                at_once: Semaphore::new(REVIEWS_AT_ONCE),
                wall,
                metrics,
                keys: (RandomState::new(), RandomState::new()),
                kept: Mutex::default(),
                turns: Mutex::new(Turns {
                    free_from: Instant::now(),
                    told_until: Instant::now(),
                }),
            }),
        }
    }

    /// The largest instance that an agent of this moment can have; `None` where callers are believed.
    pub fn instance_max(&self) -> Option<u64> {
        let reviews = self.reviews.as_ref()?;
        let now = reviews.wall.now().as_microsecond();
        u64::try_from(now.saturating_add(INSTANCE_AHEAD_MAX_US)).ok()
    }

    /// Who a call comes from, by its `authorization: Bearer` metadata.
    pub async fn of_call(&self, metadata: &MetadataMap) -> Result<Identity, Unknown> {
        if self.reviews.is_none() {
            return Ok(Identity::Believed);
        }
        let token = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("no bearer token"))?;
        self.of_token(token.trim()).await
    }

    /// Who a token speaks for.
    pub async fn of_token(&self, token: &str) -> Result<Identity, Unknown> {
        match &self.reviews {
            None => Ok(Identity::Believed),
            Some(reviews) => reviews.identify(token).await,
        }
    }
}

/// A ServiceAccount, as a review shows it.
struct Account {
    user_name: String,
    groups: [String; 2],
}

impl Account {
    /// The account with this user name, `system:serviceaccount:NAMESPACE:NAME`.
    fn of(user_name: &str) -> Self {
        let namespace = user_name.split(':').nth(2).unwrap_or_default();
        Self {
            user_name: user_name.to_owned(),
            groups: [
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
            ],
        }
    }

    /// Whether the user is this account. Another authenticator of the API server may give the same
    /// name to somebody else, but not the groups of service accounts with it.
    fn is(&self, user: &UserInfo) -> bool {
        let groups = user.groups.as_deref().unwrap_or_default();
        user.username.as_deref() == Some(self.user_name.as_str())
            && self.groups.iter().all(|group| groups.contains(group))
    }
}

impl Reviews {
    async fn identify(&self, token: &str) -> Result<Identity, Unknown> {
        if token.is_empty() || token.len() > TOKEN_MAX {
            return Err(Status::unauthenticated(format!(
                "the token has {} bytes: must have 1 to {TOKEN_MAX}",
                token.len()
            ))
            .into());
        }
        let key = (self.keys.0.hash_one(token), self.keys.1.hash_one(token));
        let now = Instant::now();
        if let Some(kept) = locked(&self.kept).get(&key)
            && kept.until > now
        {
            return Ok(Identity::Node {
                name: Arc::clone(&kept.name),
                until: kept.until,
            });
        }
        self.turn(now).await?;
        let name = self.review(token).await?;
        let until = Instant::now() + self.lifetime(token);
        let mut kept = locked(&self.kept);
        if kept.len() >= KEPT_COUNT_MAX {
            kept.retain(|_, kept| kept.until > now);
            if kept.len() >= KEPT_COUNT_MAX {
                kept.clear();
            }
        }
        let entry = Kept {
            name: Arc::clone(&name),
            until,
        };
        kept.insert(key, entry);
        Ok(Identity::Node { name, until })
    }

    /// Waits for a turn.
    async fn turn(&self, now: Instant) -> Result<(), Unknown> {
        let turn = locked(&self.turns).take(self.every, now);
        match turn {
            Ok(turn) => {
                tokio::time::sleep_until(turn).await;
                Ok(())
            }
            Err(wait) => {
                self.metrics.token_reviewed("told to come later");
                Err(Unknown::Later(wait))
            }
        }
    }

    /// Waits until few enough are reviewed at once. An API server that needs longer for each than turns are
    /// given out for gets no more of them.
    async fn one_of_few(&self) -> Result<SemaphorePermit<'_>, Unknown> {
        match tokio::time::timeout(LINE_MAX, self.at_once.acquire()).await {
            // The semaphore is never closed.
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                self.metrics.token_reviewed("told to come later");
                let later = locked(&self.turns).tell(self.every, Instant::now());
                Err(Unknown::Later(later))
            }
        }
    }

    async fn review(&self, token: &str) -> Result<Arc<str>, Unknown> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![self.audience.clone()]),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        // What waits for one of few is not timed: given up at the end of a line, none would be reviewed.
        let _one_of_few = self.one_of_few().await?;
        let created = tokio::time::timeout(REVIEW_MAX, api.create(&params, &review)).await;
        let status = match created {
            Ok(Ok(review)) => review.status.unwrap_or_default(),
            Ok(Err(error)) => {
                self.metrics.token_reviewed("failed");
                tracing::warn!(%error, "a token could not be reviewed");
                return Err(Status::unavailable("the token could not be reviewed").into());
            }
            Err(_) => {
                self.metrics.token_reviewed("failed");
                return Err(Status::unavailable("the token was not reviewed in time").into());
            }
        };
        let audience = status
            .audiences
            .iter()
            .flatten()
            .any(|name| *name == self.audience);
        if status.authenticated != Some(true) || !audience {
            self.metrics.token_reviewed("refused");
            return Err(Status::unauthenticated(format!(
                "the token is not valid for audience {}",
                self.audience
            ))
            .into());
        }
        let user = status.user.unwrap_or_default();
        if !self.account.is(&user) {
            self.metrics.token_reviewed("another account");
            return Err(Status::permission_denied(format!(
                "the token is not one of {}",
                self.account.user_name
            ))
            .into());
        }
        let name = user
            .extra
            .and_then(|extra| extra.get(NODE_NAME)?.first().cloned())
            .filter(|name| !name.is_empty());
        let Some(name) = name else {
            self.metrics.token_reviewed("no node");
            return Err(Status::unauthenticated("the token names no node").into());
        };
        self.metrics.token_reviewed("node");
        Ok(Arc::from(name))
    }

    fn lifetime(&self, token: &str) -> Duration {
        let Some(expires) = expiry(token) else {
            return KEPT_WITHOUT_EXPIRY;
        };
        let left = expires.saturating_sub(self.wall.now().as_second());
        Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(KEPT_MAX)
    }
}

/// When a token expires, seconds since the Unix epoch, by its own words. It has been reviewed, so
/// its words are true.
fn expiry(token: &str) -> Option<i64> {
    let claims = token.split('.').nth(1)?;
    let bytes = base64url(claims)?;
    let claims: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    claims.get("exp")?.as_i64()
}

/// Decodes base64 in its URL alphabet without padding.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    for symbol in text.bytes() {
        let value = match symbol {
            b'A'..=b'Z' => symbol.wrapping_sub(b'A'),
            b'a'..=b'z' => symbol.wrapping_sub(b'a').wrapping_add(26),
            b'0'..=b'9' => symbol.wrapping_sub(b'0').wrapping_add(52),
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        buffer = ((buffer << 6) | u32::from(value)) & 0x00ff_ffff;
        bits = bits.wrapping_add(6);
        if bits >= 8 {
            bits = bits.wrapping_sub(8);
            bytes.push(u8::try_from((buffer >> bits) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_read_from_the_claims() {
        // {"exp":1700000000}
        assert_eq!(expiry("h.eyJleHAiOjE3MDAwMDAwMDB9.s"), Some(1_700_000_000));
        assert_eq!(expiry("not a token"), None);
        assert_eq!(base64url("aGk_"), Some(b"hi?".to_vec()));
    }
}
