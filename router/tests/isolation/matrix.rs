//! Every verb on every table, as the attacker. Each function returns what got
//! through, one line a finding; an empty list is what is wanted.

use reqwest::Method;
use serde_json::json;

use crate::stage::Stage;

/// A column of each table that any row may be updated in.
const HARMLESS: [(&str, &str); 7] = [
    ("companies", "industry"),
    ("contacts", "phone"),
    ("leads", "name"),
    ("deals", "title"),
    ("deal_contacts", "deal_id"),
    ("activities", "subject"),
    ("notes", "body"),
];

/// Through the router, with the attacker's own key.
pub(crate) async fn over_http(stage: &Stage) -> Vec<String> {
    let mut found = Vec::new();
    for (table, column) in HARMLESS {
        reads(stage, table, &mut found).await;
        writes(stage, table, column, &mut found).await;
    }
    for read in [
        "open_deals",
        "rpc/search_contacts?query=a",
        "rpc/pipeline_summary?select=deals&deals=gt.0",
    ] {
        let (status, body) = stage.get(&stage.attacker, read).await;
        if status != 200 || body.trim() != "[]" {
            found.push(format!("{read}: {status} {body}"));
        }
    }
    let (status, body) = stage
        .call(
            &stage.attacker,
            "move_deal",
            json!({ "deal": 1, "stage": 2 }),
        )
        .await;
    if status < 400 {
        found.push(format!("rpc/move_deal: {status} {body}"));
    }
    references(stage, &mut found).await;
    found
}

/// Reads: all rows, guessed ids, counts, embedding, and the hidden column.
async fn reads(stage: &Stage, table: &str, found: &mut Vec<String>) {
    let victim = stage.victim.id;
    let harmless = [
        table.to_owned(),
        format!("{table}?limit=1000&offset=0"),
        format!("{table}?select=*&or=(created_at.is.null,created_at.not.is.null)"),
    ];
    for path in harmless {
        let (status, body) = stage.get(&stage.attacker, &path).await;
        let empty = status == 200 && body.trim() == "[]";
        // `deal_contacts` has no created_at: an error tells nothing either.
        let refused = status == 400 && !body.contains(&victim.to_string());
        if !empty && !refused {
            found.push(format!("{table}: GET {path}: {status} {body}"));
        }
    }
    for path in [
        format!("{table}?tenant_id=eq.{victim}"),
        format!("{table}?select=tenant_id"),
        format!("{table}?order=tenant_id"),
        format!("{table}?or=(tenant_id.eq.{victim},tenant_id.not.is.null)"),
    ] {
        let (status, body) = stage.get(&stage.attacker, &path).await;
        if status != 400 {
            found.push(format!("{table}: GET {path}: {status} {body}"));
        }
    }
    let url = format!("{}/rest/v1/{table}?limit=1", stage.cluster.router_url(0));
    let counted = stage
        .http
        .head(url)
        .header("apikey", &stage.attacker.key)
        .header("prefer", "count=exact")
        .send()
        .await
        .unwrap();
    let range = counted.headers().get("content-range").cloned();
    if range.as_ref().map(|r| r.as_bytes()) != Some(b"*/0") {
        found.push(format!("{table}: HEAD with a count: {range:?}"));
    }
}

/// Writes: forged tenants, all rows, guessed rows, and overwriting.
async fn writes(stage: &Stage, table: &str, column: &str, found: &mut Vec<String>) {
    let attacker = &stage.attacker;
    let returning = [("prefer", "return=representation")];
    let forged = json!({ "tenant_id": stage.victim.id });
    for path in [table.to_owned(), format!("{table}?columns=tenant_id")] {
        let (status, body) = stage.post(attacker, &path, forged.clone()).await;
        if status != 400 || !body.contains("PGRST204") {
            found.push(format!("{table}: POST {path}: {status} {body}"));
        }
    }
    let (status, body) = stage
        .request(attacker, Method::PATCH, table, Some(forged), &returning)
        .await;
    if status != 400 || !body.contains("PGRST204") {
        found.push(format!("{table}: PATCH tenant_id: {status} {body}"));
    }
    let value = if column == "deal_id" {
        json!(1)
    } else {
        json!("stolen")
    };
    let change = json!({ column: value });
    for filter in ["", "?id=gt.0", "?id=eq.1"] {
        let filter = if table == "deal_contacts" {
            filter.replace("id=", "deal_id=")
        } else {
            filter.to_owned()
        };
        let path = format!("{table}{filter}");
        for (method, body) in [
            (Method::PATCH, Some(change.clone())),
            (Method::DELETE, None),
        ] {
            let (status, body) = stage
                .request(attacker, method.clone(), &path, body, &returning)
                .await;
            if status != 200 || body.trim() != "[]" {
                found.push(format!("{table}: {method} {path}: {status} {body}"));
            }
        }
    }
}

/// Rows of the attacker's own that would point at the victim's, or take its
/// unique values. What the attacker may have, it must not learn from.
async fn references(stage: &Stage, found: &mut Vec<String>) {
    let victims = stage
        .superuser
        .query_one(
            "select (select max(id) from public.companies where tenant_id = $1),
               (select email::text from public.contacts where tenant_id = $1 limit 1)",
            &[&stage.victim.id],
        )
        .await
        .unwrap();
    let (company, email): (i64, String) = (victims.get(0), victims.get(1));
    let pointing = json!({ "company_id": company, "title": "spy" });
    let (status, body) = stage.post(&stage.attacker, "deals", pointing).await;
    if status != 409 {
        found.push(format!(
            "deals: a reference to another tenant's company: {status} {body}"
        ));
    }
    let contact = json!({ "first_name": "A", "last_name": "B", "email": email });
    let (status, body) = stage
        .post(&stage.attacker, "contacts", contact.clone())
        .await;
    if status != 201 {
        found.push(format!(
            "contacts: an address that another tenant uses: {status} {body}"
        ));
    }
    let (status, body) = stage.post(&stage.attacker, "contacts", contact).await;
    let tells = body.contains(&stage.attacker.id.to_string()) || body.contains("tenant_id");
    if status != 409 || tells {
        found.push(format!("contacts: its own address twice: {status} {body}"));
    }
    let upsert = [(
        "prefer",
        "resolution=merge-duplicates,return=representation",
    )];
    let (status, body) = stage
        .request(
            &stage.attacker,
            Method::POST,
            "companies?on_conflict=id",
            Some(json!({ "id": company, "name": "stolen" })),
            &upsert,
        )
        .await;
    if status >= 400 && !body.contains("\"428C9\"") {
        found.push(format!(
            "companies: an upsert on another tenant's id: {status} {body}"
        ));
    }
    for table in schema::crm::REFERENCE_TABLES {
        for (method, body) in [
            (Method::POST, json!({})),
            (Method::PATCH, json!({ "name": "x" })),
            (Method::DELETE, json!({})),
        ] {
            let (status, body) = stage
                .request(&stage.attacker, method.clone(), table, Some(body), &[])
                .await;
            if status < 400 {
                found.push(format!("{table}: {method}: {status} {body}"));
            }
        }
    }
    clean_up(stage).await;
}

async fn clean_up(stage: &Stage) {
    for table in schema::crm::TABLES.iter().rev() {
        let sql = format!("delete from public.{table} where tenant_id = $1");
        stage
            .superuser
            .execute(&sql, &[&stage.attacker.id])
            .await
            .unwrap();
    }
}

/// As the router's own role with the attacker entered, in SQL that names no
/// tenant: what would happen, should the router forget every filter.
pub(crate) async fn over_sql(stage: &Stage) -> Vec<String> {
    let mut found = Vec::new();
    for (table, column) in HARMLESS {
        let victim = stage.victim.id;
        let probes = [
            ("read", format!("select * from public.{table}")),
            (
                "update",
                format!("update public.{table} set {column} = {column} returning 1"),
            ),
            ("delete", format!("delete from public.{table} returning 1")),
            ("truncate", format!("truncate public.{table} cascade")),
            (
                "take over",
                format!(
                    "update public.{table} set tenant_id = '{}' returning 1",
                    stage.attacker.id
                ),
            ),
            (
                "insert",
                format!(
                    "insert into public.{table} (tenant_id) select '{victim}' from generate_series(1, 1) returning 1"
                ),
            ),
        ];
        for (verb, sql) in probes {
            if let Some(reached) = as_attacker(stage, &sql, verb).await {
                found.push(format!("{table}: {verb} {reached}"));
            }
        }
    }
    found
}

/// What a statement reached, rolled back afterwards.
async fn as_attacker(stage: &Stage, sql: &str, verb: &str) -> Option<String> {
    let client = &stage.router;
    client
        .batch_execute("begin; set local role authenticated")
        .await
        .unwrap();
    let claims = "{}";
    client
        .execute(
            "select ringfence.enter($1, 1, 'write', $2)",
            &[&stage.attacker.id, &claims],
        )
        .await
        .unwrap();
    let result = client.query(sql, &[]).await;
    client.batch_execute("rollback").await.unwrap();
    match result {
        Ok(rows) if rows.is_empty() && verb != "truncate" => None,
        Ok(rows) => Some(format!("reached {} rows", rows.len())),
        // Refused by row security or a privilege; any other refusal (a missing
        // value, say) came too late.
        Err(error) => match error.code().map(|code| code.code()) {
            Some("42501") => None,
            _ => Some(format!("got as far as: {error:?}")),
        },
    }
}

/// The guard, asked with what no tenant should be let in by.
pub(crate) async fn guard(stage: &Stage) -> Vec<String> {
    let id = stage.attacker.id.to_string();
    let stranger = uuid::Uuid::from_u128(7).to_string();
    let mut found = Vec::new();
    let asked = [
        ("a stale epoch", &id, 0, "write", "RF002"),
        ("an epoch to come", &id, 2, "read", "RF002"),
        ("an unknown tenant", &stranger, 1, "read", "RF001"),
        ("an unknown tenant's write", &stranger, 1, "write", "RF001"),
    ];
    for (what, tenant, epoch, mode, code) in asked {
        let sql = format!("select ringfence.enter('{tenant}', {epoch}, '{mode}', '{{}}')");
        let answer = stage
            .router
            .batch_execute(&format!("set role authenticated; {sql}"))
            .await;
        let refused = answer
            .as_ref()
            .is_err_and(|error| error.code().is_some_and(|found| found.code() == code));
        if !refused {
            found.push(format!("{what}: {answer:?}"));
        }
    }
    stage.router.batch_execute("reset role").await.unwrap();
    found
}
