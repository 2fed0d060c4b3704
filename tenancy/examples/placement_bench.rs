//! What placement costs at full size: `cargo run --release -p tenancy --example placement_bench`.
//!
//! 1,000 shards and 1,000,000 tenants, with 100,000 and 1,000,000 exceptions.
//! The goals: a look-up in 0.2 µs, an exception in 64 bytes. Memory is the
//! process's own growth as the kernel counts it, beside what the snapshot says.

use std::hint::black_box;
use std::time::{Duration, Instant};

use tenancy::id::{Epoch, TenantId};
use tenancy::members::Members;
use tenancy::placement::TenantState;
use tenancy::quota::LimitSet;
use tenancy::ring::Ring;
use tenancy::snapshot::{Delta, Fleet, RegionRow, ShardRow, Snapshot, SnapshotFile, TenantRow};
use uuid::Uuid;

const SHARDS: usize = 1_000;
const TENANTS: usize = 1_000_000;
/// Tenants that a router fetches at once.
const PAGE: usize = 10_000;

fn main() {
    let ids: Vec<TenantId> = (0..TENANTS).map(|_| TenantId(Uuid::new_v4())).collect();
    let names: Vec<String> = (1..=SHARDS).map(|n| format!("s{n}")).collect();
    let members = || names.iter().map(|name| (name.as_str(), 1.0));

    println!("{SHARDS} shards, {TENANTS} tenants");
    let (ring, took) = timed(|| Ring::new(members()));
    line("ring: build", format!("{:.0} ms", ms(took)));
    let look_up = each(&ids, |tenant| ring.get(tenant));
    line("ring: look up", format!("{look_up:.3} µs"));
    let mut counts = vec![0_u32; SHARDS];
    for id in &ids {
        if let Some(member) = ring.get(*id) {
            counts[member] += 1;
        }
    }
    let max = counts.iter().copied().max().unwrap_or(0);
    let spread = f64::from(max) / (TENANTS / SHARDS) as f64;
    line("ring: largest share / mean", format!("{spread:.2}"));
    drop(ring);

    for exceptional in [0, TENANTS / 10, TENANTS] {
        with_exceptions(&ids, &names, exceptional);
    }
}

fn with_exceptions(ids: &[TenantId], names: &[String], exceptional: usize) {
    println!("\n{exceptional} exceptions");
    let empty = Snapshot::empty().with(Delta {
        version: 1,
        fleet: Some(fleet(names)),
        ..Delta::default()
    });
    let before = resident_bytes();
    // In pages, as a router fetches them.
    let (mut snapshot, took) = timed(|| {
        let pages = ids[..exceptional].chunks(PAGE);
        pages.fold(empty, |snapshot, page| {
            snapshot.with(Delta {
                version: 2,
                tenants: page.iter().map(|id| moved(*id)).collect(),
                ..Delta::default()
            })
        })
    });
    if exceptional > 0 {
        line("apply them in pages", format!("{:.0} ms", ms(took)));
        let exceptions = exceptional as f64;
        let own = snapshot.exceptions().bytes() as f64 / exceptions;
        line("memory of one, as held", format!("{own:.0} bytes"));
        let grown = resident_bytes().saturating_sub(before) as f64 / exceptions;
        line("memory of one, resident", format!("{grown:.0} bytes"));
    }
    let place = each(ids, |tenant| snapshot.place(tenant));
    line("place a tenant", format!("{place:.3} µs"));
    let (_, took) = timed(|| {
        for id in &ids[..100] {
            snapshot = snapshot.with(Delta {
                version: 3,
                tenants: vec![moved(*id)],
                ..Delta::default()
            });
        }
    });
    line("apply a change", format!("{:.1} µs", ms(took) * 10.0));
    let (text, took) =
        timed(|| serde_json::to_vec(&SnapshotFile::new(&snapshot, &Members::default())));
    let Ok(text) = text else { return };
    let size = text.len() as f64 / f64::from(1 << 20);
    line(
        "file copy: encode",
        format!("{:.0} ms, {size:.1} MiB", ms(took)),
    );
    let (_, took) = timed(|| serde_json::from_slice::<SnapshotFile>(&text).map(SnapshotFile::open));
    line("file copy: decode", format!("{:.0} ms", ms(took)));
}

fn fleet(names: &[String]) -> Fleet {
    let shard = |name: &String| ShardRow {
        id: name.as_str().into(),
        region: "local".into(),
        weight: 1.0,
        on_ring: true,
        nodes: Vec::new(),
        timelines: Default::default(),
    };
    Fleet {
        regions: vec![RegionRow {
            id: "local".into(),
            is_default: true,
        }],
        shards: names.iter().map(shard).collect(),
        issuers: Vec::new(),
        plans: Vec::new(),
    }
}

fn moved(id: TenantId) -> TenantRow {
    TenantRow {
        id,
        shard: "s1".into(),
        ring_shard: "s2".into(),
        epoch: Epoch(2),
        region: "local".into(),
        state: TenantState::Active,
        limits: LimitSet::default(),
    }
}

/// The median over five rounds of the microseconds that one call takes.
fn each<T>(ids: &[TenantId], mut call: impl FnMut(TenantId) -> T) -> f64 {
    let mut rounds: Vec<f64> = (0..5)
        .map(|_| {
            let (_, took) = timed(|| {
                for id in ids {
                    black_box(call(black_box(*id)));
                }
            });
            ms(took) * 1_000.0 / ids.len() as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[2]
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

fn line(what: &str, value: String) {
    println!("  {what:<30} {value:>20}");
}

/// Resident memory of this process; 0 where the kernel does not say.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(0) * 1024
}
