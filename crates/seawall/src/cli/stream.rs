//! `seawall stream`: replicated op-logs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};

use anyhow::anyhow;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::Value;

use super::client::{Client, json, text};
use super::output::{lines, table};
use super::{Failure, Format, Outcome};

/// What `stream` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Append one entry; it is read from standard input when absent
    Append {
        /// The stream; the first entry makes it.
        stream: String,
        /// The entry.
        entry: Option<String>,
        /// Each line of standard input is an entry
        #[arg(long, conflicts_with = "entry")]
        lines: bool,
        /// Who appends, so that a repetition is noticed
        #[arg(long, requires = "seq", value_name = "NAME")]
        producer: Option<String>,
        /// The producer's how-manieth entry this is, from 1 on; with --lines that of the first line
        #[arg(long, requires = "producer")]
        seq: Option<u64>,
        /// The epoch in which the producer acts
        #[arg(long)]
        epoch: Option<u64>,
    },
    /// Print entries, one JSON object a line
    Read {
        /// The stream.
        stream: String,
        /// From this offset on; the oldest that is kept when absent
        #[arg(long, conflicts_with = "cursor")]
        from: Option<u64>,
        /// From where this cursor stands, and move it behind what was printed
        #[arg(long)]
        cursor: Option<String>,
        /// At most so many
        #[arg(long, conflicts_with = "follow")]
        limit: Option<u64>,
        /// Go on with what comes
        #[arg(long, conflicts_with = "cursor")]
        follow: bool,
        /// Print the entries' bytes alone, each with an end of line
        #[arg(long)]
        raw: bool,
        /// Answer from what this node has applied, even without a quorum
        #[arg(long)]
        stale: bool,
    },
    /// List streams
    List {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Print all cursors of a stream, or one; or move it
    Cursor {
        /// The stream.
        stream: String,
        /// The cursor.
        cursor: Option<String>,
        /// Move it to this offset
        offset: Option<u64>,
    },
    /// From now on only this epoch and newer ones may append
    Seal {
        /// The stream.
        stream: String,
        /// The epoch.
        epoch: u64,
    },
    /// Remove a stream with its cursors
    Delete {
        /// The stream.
        stream: String,
    },
}

/// Entries asked for at once.
const PIECE: u64 = 1000;

/// Runs the verb.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let path = |stream: &str| format!("/api/v1/streams/{}", Client::encode(stream));
    match &arguments.verb {
        Verb::Append { stream, entry, lines, producer, seq, epoch } => {
            let to = Target { client, path: path(stream), producer: producer.as_deref().zip(*seq), epoch: *epoch };
            let mut bytes = Vec::new();
            match entry {
                Some(entry) => to.append(0, entry.as_bytes()),
                None if *lines => {
                    for (number, line) in (0..).zip(std::io::stdin().lock().split(b'\n')) {
                        to.append(number, &line?)?;
                    }
                    Ok(())
                }
                None => {
                    std::io::stdin().lock().read_to_end(&mut bytes)?;
                    to.append(0, &bytes)
                }
            }
        }
        Verb::Read { stream, from, cursor, limit, follow, raw, stale } => {
            let path = path(stream);
            if *follow {
                return follow_stream(client, &path, *from, *raw);
            }
            let cursor = cursor.as_deref().map(|cursor| format!("{path}/cursors/{}", Client::encode(cursor)));
            let from = match &cursor {
                None => *from,
                Some(cursor) => place(client, &path, cursor)?,
            };
            read(client, &path, from, limit.unwrap_or(u64::MAX), (*stale, *raw), cursor.as_deref())
        }
        Verb::List { output } => list(client, *output),
        Verb::Cursor { stream, cursor, offset } => {
            let path = path(stream);
            let one = |cursor: &str| format!("{path}/cursors/{}", Client::encode(cursor));
            let mut out = std::io::stdout().lock();
            match (cursor, offset) {
                (Some(cursor), Some(offset)) => {
                    json(client.put(&format!("{}?offset={offset}", one(cursor)), b"")?)?;
                    writeln!(out, "{cursor} {offset}")?;
                }
                (Some(cursor), None) => writeln!(out, "{}", json(client.get(&one(cursor))?)?["offset"])?,
                (None, _) => {
                    let described = json(client.get(&format!("{path}/describe"))?)?;
                    for (cursor, offset) in described["cursors"].as_object().into_iter().flatten() {
                        writeln!(out, "{cursor} {offset}")?;
                    }
                }
            }
            Ok(())
        }
        Verb::Seal { stream, epoch } => {
            let sealed = client.post_bytes(&format!("{}/seal?epoch={epoch}", path(stream)), None, b"")?;
            writeln!(std::io::stdout(), "sealed with epoch {epoch}; older ones end at offset {}", sealed["end"])?;
            Ok(())
        }
        Verb::Delete { stream } => {
            json(client.delete(&path(stream))?)?;
            writeln!(std::io::stdout(), "{stream} deleted")?;
            Ok(())
        }
    }
}

/// Where entries go and in whose name.
struct Target<'a> {
    client: &'a Client,
    path: String,
    producer: Option<(&'a str, u64)>,
    epoch: Option<u64>,
}

impl Target<'_> {
    fn append(&self, number: u64, entry: &[u8]) -> Outcome {
        let query = match self.producer {
            Some((producer, first)) => {
                format!("?producer={}&seq={}", Client::encode(producer), first.saturating_add(number))
            }
            None => String::new(),
        };
        let appended = self.client.post_bytes(&format!("{}{query}", self.path), self.epoch, entry)?;
        let again = if appended["repeated"] == true { ", there already" } else { "" };
        let durability = appended["durability"].as_str().unwrap_or_default();
        writeln!(std::io::stdout(), "offset {} ({durability}{again})", appended["offset"])?;
        Ok(())
    }
}

/// Where a cursor stands; the beginning, if it has not been moved yet.
fn place(client: &Client, path: &str, cursor: &str) -> Result<Option<u64>, Failure> {
    let described = json(client.get(&format!("{path}/describe"))?)?;
    let name = cursor.rsplit('/').next().unwrap_or_default();
    let known = described["cursors"].as_object().into_iter().flatten();
    let mut known = known.filter(|(known, _)| Client::encode(known) == name);
    Ok(known.next().and_then(|(_, offset)| offset.as_u64()))
}

fn read(
    client: &Client,
    path: &str,
    from: Option<u64>,
    limit: u64,
    (stale, raw): (bool, bool),
    cursor: Option<&str>,
) -> Outcome {
    let (mut from, mut left) = (from, limit);
    while left > 0 {
        let place = from.map_or_else(String::new, |from| format!("&from={from}"));
        let piece = left.min(PIECE);
        let found = text(client.get(&format!("{path}?limit={piece}&stale={stale}{place}"))?)?;
        let mut next = None;
        for line in found.lines() {
            let entry: Value = serde_json::from_str(line)?;
            next = entry["offset"].as_u64().map(|offset| offset + 1);
            print(&entry, raw)?;
            left -= 1;
        }
        let Some(next) = next else { return Ok(()) };
        std::io::stdout().flush()?;
        if let Some(cursor) = cursor {
            json(client.put(&format!("{cursor}?offset={next}"), b"")?)?;
        }
        from = Some(next);
    }
    Ok(())
}

fn follow_stream(client: &Client, path: &str, from: Option<u64>, raw: bool) -> Outcome {
    let from = from.map_or_else(String::new, |from| format!("?from={from}"));
    let mut kind = String::new();
    for line in BufReader::new(client.follow_events(&format!("{path}{from}"))?.into_body().into_reader()).lines() {
        let line = line?;
        if let Some(name) = line.strip_prefix("event:") {
            name.trim().clone_into(&mut kind);
        } else if let Some(data) = line.strip_prefix("data:") {
            let data: Value = serde_json::from_str(data.trim_start())?;
            if kind != "entry" {
                return Err(Failure::failed(anyhow!("{}", data["error"].as_str().unwrap_or(&kind))));
            }
            print(&data, raw)?;
            std::io::stdout().flush()?;
        }
    }
    Err(Failure::unreachable(anyhow!("the node has stopped")))
}

fn print(entry: &Value, raw: bool) -> Outcome {
    let mut out = std::io::stdout().lock();
    if !raw {
        writeln!(out, "{entry}")?;
    } else if let Some(text) = entry["data"].as_str() {
        writeln!(out, "{text}")?;
    } else {
        out.write_all(&bytes(entry["data_base64"].as_str().unwrap_or_default()))?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// The bytes that the API told as base64 (RFC 4648, with padding).
fn bytes(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let letters: Vec<u8> = text.bytes().filter(|letter| *letter != b'=').collect();
    let mut bytes = Vec::with_capacity(letters.len() * 3 / 4);
    for chunk in letters.chunks(4) {
        let word = chunk.iter().fold(0_u32, |word, letter| word << 6 | u32::from(value(*letter)));
        let word = word << (6 * (4 - chunk.len()));
        bytes.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
    }
    bytes
}

fn list(client: &Client, output: Format) -> Outcome {
    let found = json(client.get("/api/v1/streams")?)?;
    let mut out = std::io::stdout().lock();
    if output == Format::Json {
        writeln!(out, "{}", found["streams"])?;
        return Ok(());
    }
    let mut rows = table(&["STREAM", "FIRST", "NEXT", "BYTES", "SEALED"]);
    for stream in found["streams"].as_array().into_iter().flatten() {
        let number = |field: &str| Cell::new(stream[field].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string()));
        let name = Cell::new(stream["name"].as_str().unwrap_or_default());
        rows.add_row([name, number("first"), number("next"), number("bytes"), number("sealedEpoch")]);
    }
    write!(out, "{}", lines(&rows))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_is_read_as_rfc_4648_says() {
        let cases: [(&str, &[u8]); 6] = [
            ("", b""),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("//79/A==", b"\xff\xfe\xfd\xfc"),
            ("+/+/", b"\xfb\xff\xbf"),
        ];
        for (text, bytes) in cases {
            assert_eq!(super::bytes(text), bytes, "{text}");
        }
    }
}
