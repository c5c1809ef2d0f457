//! An end of ESP in UDP with fixed keys, for tests; see [`tools::esp_peer`].
#![forbid(unsafe_code)]

use tools::esp_peer::{Options, Peer};

fn main() -> anyhow::Result<()> {
    let options: Options = argh::from_env();
    Peer::open(&options.settings()?)?.run()
}
