//! Requests are read as PostgREST reads them, whatever is in them.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use router::config::Api;
use router::error::Error;
use router::request::accept::MediaType;
use router::request::body::{self, Payload};
use router::request::filter::{Filter, Is, Operation, Operator, Quantifier, SearchSyntax, Test};
use router::request::logic::{Join, Logic, Tree};
use router::request::name::{Field, JsonKey, JsonStep};
use router::request::order::{Direction, Nulls, Order, Term};
use router::request::page::Page;
use router::request::query::Query;
use router::request::select::{Aggregate, Embed, Item};
use router::request::{ApiRequest, RequestParts, Target, prefer};

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Result<ApiRequest, Error> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::try_from(*name).unwrap();
        map.append(name, HeaderValue::from_str(value).unwrap());
    }
    let method = http::Method::from_bytes(method.as_bytes()).unwrap();
    let parts = RequestParts {
        method: &method,
        path,
        query,
        headers: &map,
    };
    ApiRequest::parse(&parts, &Api::default())
}

fn code(result: Result<ApiRequest, Error>) -> String {
    result.unwrap_err().report().code.into_owned()
}

#[test]
fn paths_name_relations_functions_and_the_root() {
    let target = |path| request("GET", path, &[]).unwrap().target;
    assert_eq!(target("/"), Target::Root);
    assert_eq!(target(""), Target::Root);
    assert_eq!(target("/a%20b"), Target::Relation("a b".into()));
    assert_eq!(target("/rpc/f"), Target::Function("f".into()));
    for path in ["/a/b", "/rpc/", "/a/", "/rpc/f/g", "/%ff"] {
        assert_eq!(code(request("GET", path, &[])), "PGRST125", "{path}");
    }
}

#[test]
fn checks_come_in_order() {
    let profile = [("accept-profile", "secret"), ("content-profile", "secret")];
    assert_eq!(code(request("TRACE", "/a/b?x=y", &profile)), "PGRST125");
    assert_eq!(code(request("TRACE", "/a?x=y", &profile)), "PGRST106");
    assert_eq!(code(request("TRACE", "/a?x=y", &[])), "PGRST117");
    assert_eq!(code(request("PUT", "/rpc/a?x=y", &[])), "PGRST101");
    let range = [("range", "3-2")];
    assert_eq!(code(request("GET", "/a?x=y", &range)), "PGRST100");
    assert_eq!(code(request("GET", "/a", &range)), "PGRST103");
}

#[test]
fn preferences_of_several_headers_are_merged_and_the_first_wins() {
    let headers = [
        ("prefer", "return=minimal, count=exact"),
        ("prefer", "return=representation,max-affected=3 , odd=1"),
        ("prefer", "handling=strict"),
    ];
    let prefer = request("PATCH", "/a", &headers).unwrap().prefer;
    assert_eq!(prefer.returning, Some(prefer::Returning::Minimal));
    assert_eq!(prefer.bound(), Some(3));
    assert_eq!(prefer.unknown, ["odd=1"]);
}

#[test]
fn accept_is_read_by_preference() {
    let accept = |text| request("GET", "/a", &[("accept", text)]).unwrap().accept;
    assert_eq!(
        accept("text/csv;q=0.5, application/json"),
        [MediaType::Json, MediaType::Csv]
    );
    assert_eq!(
        accept("application/vnd.pgrst.object+json; nulls=stripped"),
        [MediaType::Object { stripped: true }]
    );
    let plan = "application/vnd.pgrst.plan+json; for=\"text/csv, x\"; options=analyze|verbose;";
    let MediaType::Plan(explain) = &accept(plan)[0] else {
        panic!("not a plan");
    };
    assert!(explain.json);
    assert_eq!(explain.options.len(), 2);
}

#[test]
fn a_function_by_get_has_arguments_and_filters() {
    let query = request(
        "GET",
        "/rpc/f?a=1&b=eq.2&c=in.(1,2)&d=not.is.null&e=x.y",
        &[],
    );
    let query = query.unwrap().query;
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(query.arguments, [pair("a", "1"), pair("e", "x.y")]);
    assert_eq!(query.filters.len(), 3);
    assert_eq!(code(request("POST", "/rpc/f?a=1", &[])), "PGRST100");
}

#[test]
fn what_clients_send_is_understood() {
    let parsed = |text| Query::parse(text, false).unwrap();
    // Encoded separators still separate; only quotes protect.
    assert_eq!(parsed("select=a%2Cb").select.len(), 2);
    let value = |query: Query| match query.filters[0].operation.test.clone() {
        Test::In(list) => list,
        Test::Compare { value, .. } => vec![value],
        other => panic!("{other:?}"),
    };
    assert_eq!(value(parsed("a=in.(x, y)")), ["x", " y"]);
    assert_eq!(value(parsed("a=in.(\"x,y\",z\"w\")")), ["x,y", "z\"w\""]);
    assert_eq!(value(parsed("a=in.(\"say \\\"hi\\\"\")")), ["say \"hi\""]);
    assert_eq!(value(parsed("a=like.*b+c*")), ["%b c%"]);
    let tree = parsed("or=(a.cs.{x,y},b.eq.\"q,r\",not.and(c.is.null,d.in.(1,2)))");
    assert_eq!(tree.logic[0].tree.leaves(), 4);
    let nested = parsed("a.b.c->d->>0=eq.1&a.not.or=(x.eq.1)&a.limit=2&a.order=x");
    assert_eq!(nested.filters[0].path, ["a", "b"]);
    assert_eq!(nested.filters[0].field.path.len(), 2);
    assert_eq!(nested.pages.len(), 1);
    assert_eq!(parsed("select=a&select=b,c").select.len(), 1);
    assert!(Query::parse("select=,&x", false).is_err());
}

#[test]
fn what_is_too_much_is_refused() {
    let refused = |text: String| Query::parse(&text, false).unwrap_err();
    let deep = format!("or={}a.eq.1{}", "(and".repeat(99) + "(", ")".repeat(100));
    let embeds = vec!["a(b)"; 60].join(",");
    let nested = format!("select={}x{}", "a(".repeat(60), ")".repeat(60));
    let path = "a".to_owned() + &"->b".repeat(51);
    for text in [
        deep,
        nested,
        format!("select={embeds}"),
        vec!["a=eq.1"; 400].join("&"),
        vec!["a=eq.1"; 600].join("&"),
        format!("order={}", vec!["a"; 60].join(",")),
        format!("select={path}"),
        format!("{path}=eq.1"),
        format!("or=({path}.eq.1)"),
        format!("order={path}"),
        format!("order=r({path})"),
    ] {
        assert!(matches!(refused(text), Error::TooMuch { .. }));
    }
    assert_eq!(refused("x".repeat(100_000)).report().status, 414);
}

#[test]
fn bodies_are_judged_by_their_shape() {
    let post = request("POST", "/a", &[]).unwrap();
    let read = |text: &str| body::parse(&post, None, Bytes::from(text.to_owned()));
    let json = |text: &str| match read(text).unwrap() {
        Payload::Json(json) => (json.array, json.keys),
        other => panic!("{other:?}"),
    };
    let keys = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    assert_eq!(json(r#"{"b":1,"a":{"c":[1]}}"#), (false, keys(&["a", "b"])));
    assert_eq!(json(r#"[{"a":1},{"a":2}]"#), (true, keys(&["a"])));
    assert_eq!(json("7"), (true, keys(&[])));
    for text in ["", "{", "[{]", "{} x", "nul"] {
        assert_eq!(
            read(text).unwrap_err().to_string(),
            "Empty or invalid json",
            "{text}"
        );
    }
    for text in [r#"[{"a":1},{"b":1}]"#, "[1]", r#"[{"a":1},2]"#, "[[]]"] {
        assert_eq!(
            read(text).unwrap_err().to_string(),
            "All object keys must match",
            "{text}"
        );
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(read(&deep).is_err());
    let columns = request("POST", "/a?columns=x", &[]).unwrap();
    let trusted = body::parse(&columns, None, Bytes::from_static(b" [{bad"));
    assert!(matches!(trusted, Ok(Payload::Json(json)) if json.array));
    let delete = request("DELETE", "/a", &[]).unwrap();
    let ignored = body::parse(&delete, None, Bytes::from_static(b"{bad"));
    assert_eq!(ignored, Ok(Payload::None));
}

#[test]
fn csv_becomes_json() {
    let post = request("POST", "/a", &[]).unwrap();
    let read = |text: &'static str| {
        body::parse(
            &post,
            Some("text/csv; charset=utf-8"),
            Bytes::from_static(text.as_bytes()),
        )
    };
    let Ok(Payload::Json(json)) = read("a,b\r\n\"x \"\"y\"\"\",NULL\n,z\n") else {
        panic!("not read");
    };
    assert_eq!(json.text, r#"[{"a":"x \"y\"","b":null},{"a":"","b":"z"}]"#);
    for text in ["a,b\n1,2,3", "a\n\"x", "a\n\"x\"y", ""] {
        assert!(read(text).is_err(), "{text}");
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,6}", "[ -~äß✓]{0,8}"]
}

/// Names that are not blank; a bare `inner` would be a join type.
fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z_]{1,6}", "[!-~äß✓]{1,8}"].prop_filter("a word", |name| {
        !["inner", "left", "count"].contains(&name.as_str())
    })
}

fn field() -> impl Strategy<Value = Field> {
    let key = prop_oneof![
        "[a-z_]{1,5}".prop_map(JsonKey::Name),
        "[ -~äß✓]{0,8}".prop_map(JsonKey::Name),
        (-9..99).prop_map(JsonKey::Index),
    ];
    let step = (any::<bool>(), key).prop_map(|(text, key)| JsonStep { text, key });
    let path = proptest::collection::vec(step, 0..3);
    (name(), path).prop_map(|(name, path)| Field { name, path })
}

fn operation() -> impl Strategy<Value = Operation> {
    let quantifier = proptest::option::of(proptest::sample::select(Quantifier::ALL));
    let compare = (proptest::sample::select(Operator::ALL), quantifier, text()).prop_map(
        |(operator, quantifier, value)| {
            use Operator::*;
            let quantifiable = matches!(
                operator,
                Eq | Gt | Gte | Lt | Lte | Like | Ilike | Match | Imatch
            );
            Test::Compare {
                operator,
                quantifier: quantifier.filter(|_| quantifiable),
                value: match operator {
                    Like | Ilike => value.replace('*', "%"),
                    _ => value,
                },
            }
        },
    );
    let search = (
        proptest::sample::select(SearchSyntax::ALL),
        "[a-z]{1,5}",
        text(),
    );
    let test = prop_oneof![
        compare,
        proptest::collection::vec(text(), 0..4).prop_map(Test::In),
        proptest::sample::select(Is::ALL).prop_map(Test::Is),
        text().prop_map(Test::Distinct),
        search.prop_map(|(syntax, config, query)| Test::Search {
            syntax,
            config: Some(config),
            query,
        }),
    ];
    (any::<bool>(), test).prop_map(|(negated, test)| Operation { negated, test })
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = (field(), operation());
    let leaf = leaf.prop_map(|(field, operation)| Tree::Leaf { field, operation });
    let join = proptest::sample::select(vec![Join::And, Join::Or]);
    let group = move |inner: BoxedStrategy<Tree>| {
        let items = proptest::collection::vec(inner, 1..4);
        (any::<bool>(), join.clone(), items)
            .prop_map(|(negated, join, items)| Tree::Group {
                negated,
                join,
                items,
            })
            .boxed()
    };
    let inner = leaf.prop_recursive(2, 8, 3, {
        let group = group.clone();
        move |inner| group(inner.boxed())
    });
    group(inner.boxed())
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let aggregate = proptest::sample::select(vec![Aggregate::Sum, Aggregate::Max]);
    let cast = || proptest::option::of("[a-z]{1,5}");
    let plain = (
        proptest::option::of(name()),
        field(),
        cast(),
        proptest::option::of((aggregate, cast())),
    )
        .prop_map(|(alias, field, cast, call)| {
            let (aggregate, aggregate_cast) = call.unzip();
            Item::Field {
                alias,
                field: Some(field),
                cast,
                aggregate,
                aggregate_cast: aggregate_cast.flatten(),
            }
        });
    let leaf = prop_oneof![Just(Item::All), plain];
    let embed = |inner| {
        (
            proptest::option::of(name()),
            name(),
            proptest::option::of(name()),
            any::<[bool; 2]>(),
            proptest::collection::vec(inner, 0..3),
        )
            .prop_map(|(alias, target, hint, [inner, spread], items)| {
                Item::Embed(Embed {
                    alias: alias.filter(|_| !spread),
                    target,
                    hint,
                    inner,
                    spread,
                    items,
                })
            })
    };
    proptest::collection::vec(leaf.prop_recursive(3, 10, 3, embed), 1..4)
}

fn term() -> impl Strategy<Value = Term> {
    let direction = proptest::sample::select(vec![Direction::Asc, Direction::Desc]);
    let nulls = proptest::sample::select(vec![Nulls::First, Nulls::Last]);
    (
        proptest::option::of(name()),
        field(),
        proptest::option::of(direction),
        proptest::option::of(nulls),
    )
        .prop_map(|(relation, field, direction, nulls)| Term {
            relation,
            field,
            direction,
            nulls,
        })
}

/// Parameter keys whose last dotted word is reserved mean something else,
/// whatever the quotes around it.
fn filterable(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let reserved = [
        "order",
        "limit",
        "offset",
        "and",
        "or",
        "select",
        "columns",
        "on_conflict",
    ];
    !reserved.contains(&last)
}

fn query() -> impl Strategy<Value = Query> {
    let path = || proptest::collection::vec("[a-z]{1,4}", 0..3);
    let filter = (path(), field(), operation());
    let filter = filter.prop_filter("a plain key", |(_, field, _)| filterable(&field.name));
    let filter = filter.prop_map(|(path, field, operation)| Filter {
        path,
        field,
        operation,
    });
    let logic = (path(), tree()).prop_map(|(path, tree)| Logic { path, tree });
    let order = (path(), proptest::collection::vec(term(), 1..3));
    let order = order.prop_map(|(path, terms)| Order { path, terms });
    let page = (1..99_i64, proptest::option::of(0..99_i64));
    let page = page.prop_map(|(limit, offset)| Page {
        limit: Some(limit),
        offset,
    });
    let columns = || proptest::option::of(proptest::collection::btree_set(name(), 1..3));
    (
        items(),
        proptest::collection::vec(filter, 0..3),
        proptest::collection::vec(logic, 0..2),
        proptest::collection::vec(order, 0..2),
        proptest::collection::btree_map(path(), page, 0..3),
        columns(),
        columns(),
    )
        .prop_map(
            |(select, filters, logic, order, pages, columns, on_conflict)| Query {
                select,
                filters,
                logic,
                order,
                pages,
                columns: columns.map(|names| names.into_iter().collect()),
                on_conflict: on_conflict.map(|names| names.into_iter().collect()),
                arguments: Vec::new(),
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_printed_query_reads_back_as_the_same(query in query()) {
        let printed = query.to_string();
        prop_assert_eq!(Query::parse(&printed, false), Ok(query), "{}", printed);
    }

    #[test]
    fn no_query_string_panics(text in "[a-z0-9.,()!:*\"\\\\{}&=%+ >-]{0,60}", calls in any::<bool>()) {
        let _ = Query::parse(&text, calls);
    }

    #[test]
    fn no_damaged_query_panics(query in query(), cut in 0_usize..200, with in "\\PC{0,3}") {
        let mut text = query.to_string();
        let at = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        text.insert_str(at.unwrap_or(0), &with);
        let _ = Query::parse(&text, false);
    }

    #[test]
    fn no_body_panics(text in "\\PC{0,60}", csv in any::<bool>()) {
        let post = request("POST", "/a", &[]).unwrap();
        let content_type = csv.then_some("text/csv");
        let _ = body::parse(&post, content_type, Bytes::from(text));
    }
}
