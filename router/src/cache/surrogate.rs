//! Names under which a CDN in front of the routers can forget answers:
//! `Surrogate-Key`, by tenant and by tenant and table. Pure.
//!
//! `7f…e1 7f…e1/public.companies 7f…e1/public.contacts`: whoever purges the first
//! takes away all of the tenant's answers, whoever purges another those made of
//! that table. Answers of functions and views have the first alone: what they
//! read is not known.

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use schema::ident::QualifiedName;
use tenancy::id::TenantId;

use crate::plan::Plan;

const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
/// Longest header; proxies and CDNs refuse answers with much longer ones.
const BYTES_MAX: usize = 4 << 10;

/// Names an answer.
pub fn put(headers: &mut HeaderMap, tenant: TenantId, plan: &Plan) {
    let tables = match plan.opaque {
        true => &[][..],
        false => &plan.relations[..],
    };
    if let Ok(value) = HeaderValue::try_from(keys(tenant, tables)) {
        headers.insert(SURROGATE_KEY, value);
    }
}

fn keys(tenant: TenantId, tables: &[QualifiedName]) -> String {
    let mut keys = tenant.0.to_string();
    for table in tables {
        keys.push(' ');
        keys.push_str(&tenant.0.to_string());
        keys.push('/');
        escape(&mut keys, table.schema.as_str());
        keys.push('.');
        escape(&mut keys, table.name.as_str());
    }
    match keys.len() <= BYTES_MAX {
        true => keys,
        // Purged more often than need be, and never too seldom.
        false => tenant.0.to_string(),
    }
}

/// Keys are parted by blanks, and headers are ASCII.
fn escape(keys: &mut String, name: &str) {
    use std::fmt::Write;
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => keys.push(byte.into()),
            _ => {
                let _ = write!(keys, "%{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_named_by_its_tenant_and_tables() {
        let tenant = TenantId(uuid::Uuid::from_u128(1));
        let id = "00000000-0000-0000-0000-000000000001";
        let table = QualifiedName::new("public", "odd näme");
        assert_eq!(keys(tenant, &[]), id);
        let expected = format!("{id} {id}/public.odd%20n%C3%A4me");
        assert_eq!(keys(tenant, &[table]), expected);
        // Purging the tenant is said in one word in any case.
        let many: Vec<_> = (0..200)
            .map(|n| QualifiedName::new("public", format!("table_{n}").as_str()))
            .collect();
        assert_eq!(keys(tenant, &many), id);
    }
}
