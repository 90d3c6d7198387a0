//! Writes the golden saved snapshot: `cargo run -p data-raft --example golden_saved -- FILE`.
//! Run it only to add a file for a new format version; the old ones stay and must be restored for ever.

use std::path::Path;
use std::time::Duration;

use data::{Key, Op, Store as _, Txn};
use data_raft::{Options, RaftStore};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("usage: golden_saved FILE")?;
    let directory = Path::new(&file).with_extension("store");
    let store = RaftStore::open(Options { segment_bytes: 4096, reserve_bytes: 0, ..Options::new(&directory) })?;
    for number in 0..8 {
        store.txn(Txn::put(Key::try_from(format!("config/{number}"))?, format!("value {number}"))).await?;
    }
    let lease = store.lease_grant(Duration::from_secs(3600)).await?.lease;
    store.txn(Txn::default().then(Op::put_leased(Key::try_from("leased/a")?, "lives", lease))).await?;
    store.txn(Txn::put(Key::new(vec![0xff, 0x00])?, vec![0_u8, 1, 2])).await?;
    let blocks = store.save().await?.collect::<Result<Vec<_>, _>>()?;
    let saved = blocks.concat();
    std::fs::write(&file, saved)?;
    store.close().await?;
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
