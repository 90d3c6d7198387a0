//! Writes the golden data directory: `cargo run -p data-raft --example golden -- DIRECTORY`.
//! Run it only to add a directory for a new format version; the old ones stay and must open for ever.

use std::path::Path;
use std::time::Duration;

use data::{Compare, Key, KeyRange, Op, RangeRequest, Store, StoreError, Txn};
use data_raft::{Options, RaftStore};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: golden DIRECTORY")?;
    let directory = Path::new(&directory);
    let options = Options { segment_bytes: 4096, reserve_bytes: 0, ..Options::new(directory) };
    let store = RaftStore::open(options)?;
    fill(&*store).await?;
    store.snapshot().await?;
    change(&*store).await?;
    store.close().await?;
    for transient in ["lock", "owner"] {
        std::fs::remove_file(directory.join(transient))?;
    }
    Ok(())
}

/// What the snapshot holds.
async fn fill(store: &dyn Store) -> Result<(), StoreError> {
    for number in 0..8 {
        store.txn(Txn::put(Key::try_from(format!("config/{number}"))?, format!("value {number}"))).await?;
    }
    let lease = store.lease_grant(Duration::from_secs(3600)).await?.lease;
    store.txn(Txn::default().then(Op::put_leased(Key::try_from("leased/a")?, "lives", lease))).await?;
    store.txn(Txn::delete(KeyRange::prefix("config/7"))).await?;
    Ok(())
}

/// What the log holds: every kind of command.
async fn change(store: &dyn Store) -> Result<(), StoreError> {
    let name = Key::try_from("config/0")?;
    let txn = Txn::put(name.clone(), "changed").when(Compare::value(name.clone(), "value 0"));
    store.txn(txn.then(Op::Range(RangeRequest::prefix("config/").limit(2)))).await?;
    let refused = Txn::put(name.clone(), "never").when(Compare::absent(name));
    store.txn(refused.otherwise(Op::put(Key::try_from("otherwise")?, "ran"))).await?;
    let doomed = store.lease_grant(Duration::from_secs(60)).await?.lease;
    store.txn(Txn::default().then(Op::put_leased(Key::try_from("leased/b")?, "dies", doomed))).await?;
    store.lease_revoke(doomed).await?;
    store.txn(Txn::put(Key::new(vec![0xff, 0x00])?, vec![0_u8, 1, 2])).await?;
    for number in 0..12 {
        store.txn(Txn::put(Key::try_from("long")?, format!("{number} ").repeat(150))).await?;
    }
    Ok(())
}
