//! The only maker of cache keys. A key holds all that can change an answer
//! (DESIGN.md §6, rule 12): two requests of equal keys may share one.
//!
//! A key is a SHA-256 digest: tenants choose what goes into it, so nothing that
//! could be made to collide will do.

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderMap;
use http::header::{ACCEPT, HeaderName, RANGE};
use schema::catalog::Catalog;
use tenancy::auth::TenantContext;

use crate::execute::Guard;
use crate::plan::Plan;
use crate::sql::Statement;

/// A cached value's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Of a planned read.
    ///
    /// Its statement's text is a function of the plan's shape, and everything
    /// that came from the request is among the parameters.
    pub fn of_plan(
        tenant: &TenantContext,
        epoch: i64,
        catalog: &Catalog,
        guard: &Guard,
        plan: &Plan,
        statement: &Statement,
    ) -> Self {
        let mut parts = Parts::new(b"plan 1");
        parts.whom(tenant, epoch, catalog);
        parts.optional(guard.settings.as_deref());
        parts.add(plan.media.content_type().as_bytes());
        parts.add(statement.text.as_bytes());
        for param in &statement.params {
            parts.optional(param.as_deref());
        }
        parts.finish()
    }

    /// Of a read as it was sent: what leads to its plan without planning it again.
    pub fn of_request(
        tenant: &TenantContext,
        epoch: i64,
        catalog: &Catalog,
        method: &http::Method,
        path: &str,
        query: &str,
        headers: &HeaderMap,
    ) -> Self {
        let mut parts = Parts::new(b"request 1");
        parts.whom(tenant, epoch, catalog);
        parts.add(method.as_str().as_bytes());
        parts.add(path.as_bytes());
        parts.add(query.as_bytes());
        // Every header that the request's stages read; not those that say how
        // old an answer may be.
        for name in PLANNED_BY {
            for value in headers.get_all(name) {
                parts.add(value.as_bytes());
            }
            parts.end_of_list();
        }
        parts.finish()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// For maps that are split by key.
    pub fn shard_of(&self, shards: usize) -> usize {
        usize::from(self.0[0]) % shards.max(1)
    }
}

/// Headers that a plan depends on.
const PLANNED_BY: [HeaderName; 4] = [
    ACCEPT,
    HeaderName::from_static("accept-profile"),
    HeaderName::from_static("prefer"),
    RANGE,
];

/// Parts of a key, each with its length, so that none can flow into the next. The
/// digest is of them all at once, which is quicker than by such small ones.
struct Parts(Vec<u8>);

/// Bytes of most keys' parts.
const PARTS_USUAL: usize = 512;

impl Parts {
    fn new(kind: &[u8]) -> Self {
        let mut parts = Self(Vec::with_capacity(PARTS_USUAL));
        parts.add(kind);
        parts
    }

    fn add(&mut self, part: &[u8]) {
        self.0.extend_from_slice(&(part.len() as u64).to_le_bytes());
        self.0.extend_from_slice(part);
    }

    /// A part that may be missing, which is not the same as empty.
    fn optional(&mut self, part: Option<&[u8]>) {
        match part {
            Some(part) => self.add(part),
            None => self.end_of_list(),
        }
    }

    fn end_of_list(&mut self) {
        self.0.extend_from_slice(&u64::MAX.to_le_bytes());
    }

    /// The tenant, where it lives, its schema, and all that policies can tell
    /// apart: the role, and the claims where one of them reads those.
    fn whom(&mut self, tenant: &TenantContext, epoch: i64, catalog: &Catalog) {
        self.add(tenant.tenant().0.as_bytes());
        self.add(&epoch.to_le_bytes());
        self.add(catalog.fingerprint.0.as_bytes());
        self.add(tenant.role().as_bytes());
        self.optional(catalog.reads_claims.then(|| tenant.claims().as_bytes()));
    }

    fn finish(self) -> Key {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, &self.0).as_ref());
        Key(bytes)
    }
}

#[cfg(test)]
impl Key {
    pub(crate) fn for_test(n: u8) -> Self {
        Self([n; 32])
    }
}
