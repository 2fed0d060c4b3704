//! The CRM's data, and that each tenant has its own.

use schema::crm::{DEMO_TENANTS, TABLES, install, seed};
use tokio_postgres::{Client, SimpleQueryMessage};
use uuid::Uuid;

use crate::support::Shard;

fn tenant(number: u128) -> Uuid {
    Uuid::from_u128(0x4000_8000_0000_0000_0000 + number)
}

/// A shard with the CRM and the demo tenants, acme with 20 generated contacts besides.
async fn crm() -> Shard {
    let mut shard = Shard::with("").await;
    install(&mut shard.admin).await.unwrap();
    for (number, slug) in (1..).zip(DEMO_TENANTS) {
        let id = tenant(number);
        shard
            .run(&format!(
                "insert into ringfence.fence (tenant_id, epoch) values ('{id}', 1)"
            ))
            .await;
        let rows = if slug == "acme" { 20 } else { 0 };
        seed(&shard.admin, id, slug, rows).await.unwrap();
    }
    shard
}

async fn value(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap();
    let mut rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    rows.next().unwrap_or_default()
}

/// A router's connection that begun a transaction for a tenant.
async fn entered(shard: &Shard, tenant: Uuid) -> Client {
    let client = shard.router().await;
    client
        .batch_execute(&format!(
            "set role authenticated; begin; select ringfence.enter('{tenant}', 1, 'write', '')"
        ))
        .await
        .unwrap();
    client
}

#[tokio::test]
async fn each_tenant_sees_its_own_rows_only() {
    let shard = crm().await;
    for number in 1..=3 {
        let id = tenant(number);
        let client = entered(&shard, id).await;
        for table in TABLES {
            let seen = value(&client, &format!("select count(*) from {table}")).await;
            let own = format!("select count(*) from {table} where tenant_id = '{id}'");
            let own = value(&shard.admin, &own).await;
            assert_ne!(own, "0", "{table}");
            assert_eq!(seen, own, "{table}");
        }
        assert_eq!(
            value(&client, "select count(*) from pipeline_stages").await,
            "6"
        );
    }
}

#[tokio::test]
async fn the_same_address_may_be_in_two_tenants_but_not_twice_in_one() {
    let shard = crm().await;
    let jordan = "select count(*) from contacts where email = 'jordan.lee@northwind.example'";
    assert_eq!(value(&shard.admin, jordan).await, "2");
    let client = entered(&shard, tenant(1)).await;
    let again = "insert into contacts (first_name, last_name, email) values ('J', 'L', 'jordan.lee@northwind.example')";
    let refused = client.batch_execute(again).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "23505");
}

#[tokio::test]
async fn a_deleted_company_leaves_its_contacts_with_their_tenant() {
    let shard = crm().await;
    let client = entered(&shard, tenant(2)).await;
    client
        .batch_execute("delete from companies where id = 1; commit")
        .await
        .unwrap();
    let left = "select tenant_id || ' ' || (company_id is null) from contacts where id = 1 and tenant_id = ";
    let globex = tenant(2);
    assert_eq!(
        value(&shard.admin, &format!("{left}'{globex}'")).await,
        format!("{globex} true")
    );
    // Another tenant's company 1 and its contacts are as they were.
    let acme = tenant(1);
    assert_eq!(
        value(&shard.admin, &format!("{left}'{acme}'")).await,
        format!("{acme} false")
    );
}

#[tokio::test]
async fn functions_and_views_work_for_one_tenant() {
    let shard = crm().await;
    let client = entered(&shard, tenant(2)).await;
    assert_eq!(
        value(
            &client,
            "select (move_deal(1, 5::smallint)).closed_at is not null"
        )
        .await,
        "t"
    );
    assert_eq!(value(&client, "select count(*) from open_deals").await, "2");
    assert_eq!(
        value(&client, "select (convert_lead(3, 1)).email").await,
        "k.mori@hikari.example"
    );
    assert_eq!(
        value(
            &client,
            "select string_agg(c.full_name, ',') from search_contacts('freja') c"
        )
        .await,
        "Freja Holm"
    );
    assert_eq!(
        value(
            &client,
            "select deals from pipeline_summary() where stage = 'Won'"
        )
        .await,
        "2"
    );
    client.batch_execute("commit").await.unwrap();
    let acme = format!(
        "select stage_id from deals where id = 1 and tenant_id = '{}'",
        tenant(1)
    );
    assert_eq!(value(&shard.admin, &acme).await, "4");
}

#[tokio::test]
async fn reference_tables_are_read_only() {
    let shard = crm().await;
    for sql in [
        "delete from countries",
        "update pipeline_stages set name = 'x'",
        "insert into countries values ('XX', 'x', 'x', 'x')",
    ] {
        let client = entered(&shard, tenant(1)).await;
        let refused = client.batch_execute(sql).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{sql}");
    }
}

#[tokio::test]
async fn seeding_is_the_same_each_time_and_new_ids_come_after_it() {
    let shard = crm().await;
    let digest =
        "select md5(string_agg(c::text, ';' order by c.id)) from contacts c where tenant_id = ";
    let digest = format!("{digest}'{}'", tenant(1));
    let before = value(&shard.admin, &digest).await;
    seed(&shard.admin, tenant(1), "acme", 20).await.unwrap();
    assert_eq!(value(&shard.admin, &digest).await, before);
    assert_eq!(
        value(
            &shard.admin,
            &format!(
                "select count(*) from contacts where tenant_id = '{}'",
                tenant(1)
            )
        )
        .await,
        "26"
    );
    let client = entered(&shard, tenant(3)).await;
    let made = "insert into companies (name) values ('New') returning id > 1040";
    assert_eq!(value(&client, made).await, "t");
}
