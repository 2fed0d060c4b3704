//! What a request becomes in SQL, whole; and what can't become any.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use router::config::Api;
use router::error::Error;
use router::plan::{Model, plan};
use router::request::{ApiRequest, RequestParts, body};
use router::sql::{self, Statement};

use super::model;

/// A line `METHOD path`, then headers, then the body where there is one.
const REQUESTS: &[&str] = &[
    "GET /companies?id=eq.1",
    "GET /contacts?select=email,companies(name)&companies.name=like.A*&order=companies(name).desc",
    "GET /companies?select=name,contacts!inner(email,deals(amount))&contacts.deals.limit=2",
    "GET /companies?select=name,parent_id(name),below:companies!parent_id(name)",
    "GET /contacts?select=email,...companies(company:name)&or=(id.gt.5,not.and(email.is.null,id.in.(1,2)))",
    "GET /companies?select=name,contacts()&contacts=is.null&data->a->>b=eq.c",
    "GET /deals?select=company_id,amount.sum(),amount.avg()::int,count()",
    "GET /companies?select=name,deals(amount.max())\nPrefer: count=exact\nRange: 5-9",
    "GET /companies?select=id::text,data->a,tags\nAccept: text/csv",
    "HEAD /companies?name=fts(english).x\nPrefer: count=exact",
    "POST /companies\n{\"name\": \"a\"}",
    "POST /companies?select=id,contacts(email)\nPrefer: return=representation\n[{\"name\": \"a\"}, {\"name\": \"b\"}]",
    "POST /companies?columns=id,name\nPrefer: missing=default, return=headers-only\n[{\"name\": \"a\"}]",
    "POST /companies\nPrefer: resolution=merge-duplicates, return=representation\nAccept: application/vnd.pgrst.object+json\n{\"id\": 1, \"name\": \"a\"}",
    "POST /companies?on_conflict=name\nPrefer: resolution=ignore-duplicates\n[{\"name\": \"a\"}]",
    "PUT /companies?id=eq.1\n{\"id\": 1, \"name\": \"a\"}",
    "PATCH /companies?id=eq.1&select=name\nPrefer: return=representation\n{\"name\": \"a\", \"tags\": [\"x\"]}",
    "PATCH /companies?id=eq.1\nIf-Match: *\nPrefer: handling=strict, max-affected=1\n{\"name\": \"a\"}",
    "DELETE /contacts?id=gt.5&companies.name=eq.A&companies=not.is.null&select=companies()",
    "DELETE /contacts?id=eq.5\nAccept: x/none, application/vnd.pgrst.object+json;nulls=stripped\nPrefer: return=representation",
    "GET /rpc/search?query=x&email=like.*@a&select=email,companies(name)&limit=3",
    "POST /rpc/search?order=email\nPrefer: count=exact\n{\"query\": \"x\", \"top\": 3}",
    "POST /rpc/echo\n{\"any\": 1}",
];

fn decide(model: &Model, api: &Api, request: &str) -> Result<Statement, Error> {
    let mut lines = request.lines();
    let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = HeaderMap::new();
    let mut sent = "";
    for line in lines {
        match line
            .split_once(": ")
            .filter(|_| !line.starts_with(['{', '[']))
        {
            Some((name, value)) => {
                let name = HeaderName::try_from(name).unwrap();
                headers.append(name, HeaderValue::from_str(value).unwrap());
            }
            None => sent = line,
        }
    }
    let parts = RequestParts {
        method: &Method::from_bytes(method.as_bytes()).unwrap(),
        path,
        query,
        headers: &headers,
    };
    let request = ApiRequest::parse(&parts, api)?;
    let payload = body::parse(&request, None, Bytes::copy_from_slice(sent.as_bytes()))?;
    let plan = plan(model, api, &request, &payload)?;
    Ok(sql::statement(&plan, None, None).unwrap())
}

fn api() -> Api {
    Api {
        aggregates: true,
        ..Api::default()
    }
}

#[test]
fn requests_become_statements() {
    let (model, api) = (model::crm(), api());
    let mut shown = String::new();
    for request in REQUESTS {
        let statement = decide(&model, &api, request).unwrap_or_else(|e| panic!("{request}: {e}"));
        let values = statement.params.iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_deref().unwrap()).into_owned())
            .collect();
        shown.push_str(&format!(
            "{request}\n>>> {:?} {}\n>>> {values:?}\n\n",
            statement.form, statement.text
        ));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn what_the_configuration_or_a_spread_forbids_has_a_code_of_its_own() {
    let model = model::crm();
    let code = |api: &Api, request: &str| {
        let refused = decide(&model, api, request).unwrap_err();
        refused.report().code.into_owned()
    };
    for request in [
        "GET /deals?select=amount.sum()",
        "GET /companies?select=name,deals(count())",
        "POST /deals?select=amount.max()\nPrefer: return=representation\n{\"amount\": 1}",
    ] {
        assert_eq!(code(&Api::default(), request), "PGRST123", "{request}");
    }
    let spread = "GET /companies?select=name,...deals(amount.sum())";
    assert_eq!(code(&api(), spread), "PGRST127");
}
