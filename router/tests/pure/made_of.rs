//! Which answers may be kept, and by what they are known to have changed (rule 12).

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method};
use router::cache::made_of::{NotKept, cells};
use router::config::Api;
use router::plan::{Model, plan};
use router::request::{ApiRequest, RequestParts, body};
use schema::catalog::{Catalog, Scope, Uncacheable};
use schema::ident::QualifiedName;
use tenancy::changes::{Cell, TableHash};
use tenancy::id::TenantId;
use uuid::Uuid;

use super::model;

const TENANT: TenantId = TenantId(Uuid::from_u128(7));

fn made_of(model: &Model, method: Method, path: &str, query: &str) -> Result<Vec<Cell>, NotKept> {
    let config = Api {
        aggregates: true,
        ..Api::default()
    };
    let parts = RequestParts {
        method: &method,
        path,
        query,
        headers: &HeaderMap::new(),
    };
    let request = ApiRequest::parse(&parts, &config).unwrap();
    let sent = match method {
        Method::POST => Bytes::from_static(b"{}"),
        _ => Bytes::new(),
    };
    let payload = body::parse(&request, None, sent).unwrap();
    let plan = plan(model, &config, &request, &payload).unwrap();
    cells(&plan, model.catalog(), TENANT)
}

/// The schema, changed.
fn with(change: impl FnOnce(&mut Catalog)) -> Model {
    let mut catalog = Catalog::clone(model::crm().catalog());
    change(&mut catalog);
    Model::new(Arc::new(catalog))
}

fn of_tables(tables: &[&str]) -> Vec<Cell> {
    let mut cells = vec![Cell::fence(TENANT)];
    for table in tables {
        let table = TableHash::of("public", table);
        cells.extend([Cell::rows(TENANT, table), Cell::table(table)]);
    }
    cells.sort_unstable();
    cells.dedup();
    cells
}

#[test]
fn reads_of_tables_are_made_of_all_that_they_name() {
    let model = model::crm();
    for (path, query, tables) in [
        (
            "/companies",
            "select=id,name&name=eq.A&order=id",
            &["companies"][..],
        ),
        (
            "/companies",
            "select=id,contacts(email)",
            &["companies", "contacts"],
        ),
        (
            "/companies",
            "select=id,contacts!inner(email)",
            &["companies", "contacts"],
        ),
        (
            "/deals",
            "select=id,companies(name),contacts(email)",
            &["deals", "companies", "contacts"],
        ),
        ("/deals", "select=amount.sum()", &["deals"]),
        ("/companies", "select=id,name::text", &["companies"]),
        // Of a text, "now" is a word.
        ("/companies", "select=id&name=eq.now", &["companies"]),
    ] {
        let made = made_of(&model, Method::GET, path, query);
        assert_eq!(made, Ok(of_tables(tables)), "{path}?{query}");
    }
}

#[test]
fn what_depends_on_more_than_rows_is_not_kept() {
    let model = model::crm();
    for (method, path, query, why) in [
        (Method::POST, "/companies", "", NotKept::NotARead),
        (Method::GET, "/rpc/search", "query=x", NotKept::NotARead),
        (
            Method::GET,
            "/companies",
            "select=id,name::timestamptz",
            NotKept::Time,
        ),
        (
            Method::GET,
            "/companies",
            "select=id,name::date",
            NotKept::Time,
        ),
    ] {
        let made = made_of(&model, method, path, query);
        assert_eq!(made, Err(why), "{path}?{query}");
    }
    let dated = with(|catalog| {
        let companies = catalog
            .relations
            .get_mut(&QualifiedName::new("public", "companies"));
        for column in &mut companies.unwrap().columns {
            if column.name.as_str() == "name" {
                column.base_type = "timestamp with time zone".into();
            }
        }
    });
    for (query, kept) in [
        ("name=gt.2020-01-01", true),
        ("name=gt.now", false),
        ("name=lt.Tomorrow", false),
        ("name=in.(2020-01-01,yesterday)", false),
        ("or=(id.eq.1,name.gt.now)", false),
        ("name=is.null", true),
    ] {
        let made = made_of(&dated, Method::GET, "/companies", query);
        let expected = kept.then(|| of_tables(&["companies"])).ok_or(NotKept::Time);
        assert_eq!(made, expected, "{query}");
    }
}

#[test]
fn tables_and_schemas_say_for_themselves_what_is_not_kept() {
    let table = |change: fn(&mut schema::catalog::Relation)| {
        with(|catalog| {
            let deals = QualifiedName::new("public", "deals");
            change(catalog.relations.get_mut(&deals).unwrap());
        })
    };
    let settings = with(|catalog| catalog.reads_request_settings = true);
    let reference = Cell::table(TableHash::of("public", "deals"));
    let mut of_reference = vec![Cell::fence(TENANT), reference];
    of_reference.sort_unstable();
    for (model, expected) in [
        (
            table(|deals| deals.uncacheable = Some(Uncacheable::Policy)),
            Err(NotKept::Table(Uncacheable::Policy)),
        ),
        (
            table(|deals| deals.uncacheable = Some(Uncacheable::NotPublished)),
            Err(NotKept::Table(Uncacheable::NotPublished)),
        ),
        (
            table(|deals| deals.scope = Scope::View),
            Err(NotKept::Table(Uncacheable::View)),
        ),
        (
            table(|deals| deals.scope = Scope::Reference),
            Ok(of_reference),
        ),
        (settings, Err(NotKept::Settings)),
    ] {
        assert_eq!(
            made_of(&model, Method::GET, "/deals", "select=id"),
            expected
        );
    }
}
