//! Tokens and the reviews of them. Everybody may do everything here: access reviews allow.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::error::ApiError;
use super::server::{ApiServer, Target};
use crate::value;

/// What a token proves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenClaims {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub account: String,
    /// Uid of the service account.
    pub account_uid: String,
    /// Pod that the token is bound to, or `""`.
    pub pod: String,
    /// Uid of that pod, or `""`.
    pub pod_uid: String,
    /// Node that the token is bound to, or `""`.
    pub node: String,
    /// Uid of that node, or `""`.
    pub node_uid: String,
    /// Audiences that accept the token; empty means the API server's own.
    pub audiences: Vec<String>,
    /// Cluster time at which it expires.
    pub expires: Duration,
}

/// The tokens that were given out.
#[derive(Debug, Default)]
pub struct Tokens {
    issued: Mutex<BTreeMap<String, TokenClaims>>,
}

/// The audience of the API server itself.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc";
/// In the claims of a token: every audience accepts it.
pub const ANY_AUDIENCE: &str = "*";
const EXPIRY_SECONDS_DEFAULT: u64 = 3600;

impl Tokens {
    fn add(&self, token: String, claims: TokenClaims) {
        self.issued
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(token, claims);
    }

    fn get(&self, token: &str) -> Option<TokenClaims> {
        self.issued
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(token)
            .cloned()
    }

    fn revoke(&self, token: &str) -> bool {
        self.issued
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(token)
            .is_some()
    }
}

impl ApiServer {
    /// A token of service account `muster-agent` in `muster-system` that is bound to the node: what a projected token
    /// of the agent's pod there would prove. Valid for ten years.
    #[must_use]
    pub fn mint_node_token(&self, node: &str) -> String {
        let uid = self
            .target("", "nodes", "", node)
            .and_then(|t| self.get(&t))
            .map(|n| value::uid(&n.value).to_owned())
            .unwrap_or_default();
        self.mint_token(TokenClaims {
            namespace: "muster-system".into(),
            account: "muster-agent".into(),
            account_uid: "muster-agent".into(),
            pod: format!("muster-agent-{node}"),
            pod_uid: String::new(),
            node: node.into(),
            node_uid: uid,
            audiences: vec![ANY_AUDIENCE.into()],
            expires: self.clock().elapsed() + Duration::from_secs(315_360_000),
        })
    }

    /// A token that proves `claims`. It says when it expires where a JWT says it, and is signed by nobody.
    #[must_use]
    pub fn mint_token(&self, claims: TokenClaims) -> String {
        let left = claims.expires.saturating_sub(self.clock().elapsed());
        let expires = self.clock().now().checked_add(left);
        let said = json!({"exp": expires.unwrap_or(jiff::Timestamp::MAX).as_second()}).to_string();
        let said = super::base64(said.as_bytes())
            .replace('+', "-")
            .replace('/', "_");
        let said = said.trim_end_matches('=');
        let token = format!("embedded.{said}.{}", self.chance().token());
        self.inner.tokens.add(token.clone(), claims);
        token
    }

    /// Makes a token worthless; true when it was known.
    pub fn revoke_token(&self, token: &str) -> bool {
        self.inner.tokens.revoke(token)
    }

    /// The user name behind a bearer token, when it is known and not expired.
    #[must_use]
    pub fn user_of(&self, token: &str) -> Option<String> {
        let claims = self.inner.tokens.get(token)?;
        (claims.expires > self.clock().elapsed()).then(|| {
            format!(
                "system:serviceaccount:{}:{}",
                claims.namespace, claims.account
            )
        })
    }

    /// Answers a TokenReview.
    #[must_use]
    pub fn review_token(&self, review: &Value) -> Value {
        let token = value::text(review, &["spec", "token"]);
        let wanted: Vec<&str> = value::items(review, &["spec", "audiences"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let refuse = |why: &str| json!({"authenticated": false, "user": {}, "error": why});
        let status = match self.inner.tokens.get(token) {
            None => refuse("[invalid bearer token]"),
            Some(c) if c.expires <= self.clock().elapsed() => {
                refuse("[invalid bearer token, service account token has expired]")
            }
            Some(claims) => match audiences(&claims, &wanted) {
                Some(audiences) => {
                    json!({"authenticated": true, "user": user_info(&claims), "audiences": audiences})
                }
                None => refuse(
                    "[invalid bearer token, token audiences is invalid for the target audiences]",
                ),
            },
        };
        let mut answer = review.clone();
        value::set(&mut answer, &["apiVersion"], "authentication.k8s.io/v1");
        value::set(&mut answer, &["kind"], "TokenReview");
        value::set(&mut answer, &["status"], status);
        answer
    }

    /// Answers a TokenRequest on a service account.
    ///
    /// # Errors
    /// 404 when the service account, or the object that the token is to be bound to, is not there.
    pub fn request_token(&self, target: &Target, request: &Value) -> Result<Value, ApiError> {
        let account = self.get(target)?;
        let seconds = value::at(request, &["spec", "expirationSeconds"])
            .and_then(Value::as_u64)
            .unwrap_or(EXPIRY_SECONDS_DEFAULT);
        let mut claims = TokenClaims {
            namespace: target.namespace.clone(),
            account: target.name.clone(),
            account_uid: value::uid(&account.value).into(),
            audiences: value::items(request, &["spec", "audiences"])
                .iter()
                .filter_map(|a| a.as_str().map(str::to_owned))
                .collect(),
            expires: self.clock().elapsed() + Duration::from_secs(seconds),
            ..TokenClaims::default()
        };
        let bound = value::text(request, &["spec", "boundObjectRef", "name"]);
        match value::text(request, &["spec", "boundObjectRef", "kind"]) {
            "Pod" => {
                let pod = self.get(&self.target("", "pods", &target.namespace, bound)?)?;
                claims.pod = bound.into();
                claims.pod_uid = value::uid(&pod.value).into();
                claims.node = value::text(&pod.value, &["spec", "nodeName"]).into();
            }
            "Node" => claims.node = bound.into(),
            _ => {}
        }
        if !claims.node.is_empty() {
            let node = self.get(&self.target("", "nodes", "", &claims.node)?)?;
            claims.node_uid = value::uid(&node.value).into();
        }
        let token = self.mint_token(claims);
        let mut answer = request.clone();
        value::set(&mut answer, &["apiVersion"], "authentication.k8s.io/v1");
        value::set(&mut answer, &["kind"], "TokenRequest");
        let expires = self.clock().stamp_after(Duration::from_secs(seconds));
        value::set(
            &mut answer,
            &["status"],
            json!({"token": token, "expirationTimestamp": expires}),
        );
        Ok(answer)
    }
}

fn audiences(claims: &TokenClaims, wanted: &[&str]) -> Option<Vec<String>> {
    if claims.audiences.iter().any(|a| a == ANY_AUDIENCE) {
        return Some(wanted.iter().map(|a| (*a).to_owned()).collect());
    }
    let own = [API_AUDIENCE.to_owned()];
    let has: &[String] = if claims.audiences.is_empty() {
        &own
    } else {
        &claims.audiences
    };
    if wanted.is_empty() {
        return has.iter().any(|a| a == API_AUDIENCE).then(|| own.to_vec());
    }
    let both: Vec<String> = has
        .iter()
        .filter(|a| wanted.contains(&a.as_str()))
        .cloned()
        .collect();
    (!both.is_empty()).then_some(both)
}

fn user_info(claims: &TokenClaims) -> Value {
    let mut extra = json!({});
    for (key, text) in [
        ("pod-name", &claims.pod),
        ("pod-uid", &claims.pod_uid),
        ("node-name", &claims.node),
        ("node-uid", &claims.node_uid),
    ] {
        if !text.is_empty() {
            let key = format!("authentication.kubernetes.io/{key}");
            value::set(&mut extra, &[key.as_str()], json!([text]));
        }
    }
    json!({
        "username": format!("system:serviceaccount:{}:{}", claims.namespace, claims.account),
        "uid": claims.account_uid,
        "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{}", claims.namespace), "system:authenticated"],
        "extra": extra,
    })
}
