//! Sequences are raised past numbers from elsewhere, and never used up by them.

use schema::sequences::{Raised, raise};

use crate::support::Shard;

#[tokio::test]
async fn numbers_from_elsewhere_use_up_no_sequence() {
    let shard = Shard::new().await;
    let admin = shard
        .with(
            r#"create table t (id int generated always as identity primary key);
               create sequence "Od""d"; create sequence down increment -1;
               create sequence ringfence.own"#,
        )
        .await;
    let mover = shard.connect("ringfence_mover").await;
    let raised = async |past: &[(&str, i64)]| {
        let past = past.iter().map(|(name, past)| ((*name).into(), *past));
        raise(&*mover, past.collect()).await.unwrap()
    };
    let next = async |name: &str| admin.value(&format!("select nextval('{name}')")).await;

    // By both ways of writing a name, to the highest; what is not the
    // application's is passed over, whatever it is called.
    let past = [
        ("public.t_id_seq", 7),
        (r#""public"."t_id_seq""#, 41),
        (r#"public."Od""d""#, 2_000_000),
        ("public.down", i64::MAX),
        ("ringfence.own", i64::MAX),
        ("no name; at \"all", i64::MAX),
    ];
    assert_eq!(raised(&past).await, Raised::All(2));
    assert_eq!(next("t_id_seq").await, "42");
    assert_eq!(next(r#""Od""d""#).await, "2000001");
    assert_eq!(next("down").await, "-1");
    assert_eq!(next("ringfence.own").await, "1");

    // A number at the end would leave the other tenants none: nothing is raised.
    let end = i64::from(i32::MAX);
    let past = [(r#"public."Od""d""#, 3_000_000), ("public.t_id_seq", end)];
    assert_eq!(
        raised(&past).await,
        Raised::NearlyUsedUp("public.t_id_seq".into())
    );
    assert_eq!(next("t_id_seq").await, "43");
    assert_eq!(next(r#""Od""d""#).await, "2000002");

    // Where it is that far by itself, rows of a tenant make it no worse.
    admin
        .value(&format!("select setval('t_id_seq', {})", end - 9))
        .await;
    let past = [("public.t_id_seq", end - 10)];
    assert_eq!(raised(&past).await, Raised::All(1));
    assert_eq!(next("t_id_seq").await, (end - 8).to_string());
}
