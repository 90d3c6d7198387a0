//! The authority of a cluster and its nodes' certificates, as files. Keys are readable by their owner alone.
//! Deliberately absent: how they are used (`data/raft`, `transport/tcp.rs`).

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use node::authority::{parameters, validity};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::cli::Failure;

/// How long an authority is good.
const AUTHORITY_DAYS: i64 = 3650;

/// Makes a new authority and its first nodes' certificates.
pub fn init(dir: &Path, nodes: &[String]) -> Result<(), Failure> {
    check_names(nodes).map_err(Failure::bad_input)?;
    let authority = dir.join("ca.key");
    if authority.exists() {
        let error =
            anyhow!("{} exists: nothing was changed; `seawall cluster issue` adds a node to it", authority.display());
        return Err(Failure::bad_input(error));
    }
    make(dir, nodes).map_err(Failure::failed)
}

fn check_names(nodes: &[String]) -> Result<()> {
    for (index, node) in nodes.iter().enumerate() {
        if let Err(rule) = model::config::decode::dns_label(node) {
            bail!("a node cannot be called `{node}`: a name is a DNS label: {rule}");
        }
        if nodes[..index].contains(node) || node == "ca" || node == "founders" {
            bail!("`{node}` cannot be used twice, and `ca` and `founders` are files of their own");
        }
    }
    Ok(())
}

fn make(dir: &Path, nodes: &[String]) -> Result<()> {
    platform::file::create_private_directory(dir).with_context(|| dir.display().to_string())?;
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, "Seawall cluster authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut parameters, AUTHORITY_DAYS).map_err(|error| anyhow!(error))?;
    let authority = CertifiedIssuer::self_signed(parameters, key)?;
    for node in nodes {
        certify(dir, node, &authority)?;
    }
    write(dir, "founders", format!("{}\n", nodes.join("\n")).as_bytes())?;
    write(dir, "ca.pem", authority.pem().as_bytes())?;
    // Last: where it is, everything else is.
    platform::identity::write_private(&dir.join("ca.key"), authority.key().serialize_pem().as_bytes())
        .with_context(|| dir.join("ca.key").display().to_string())
}

/// Makes one more node's certificate, or another one for a node that has one.
pub fn issue(dir: &Path, node: &str) -> Result<(), Failure> {
    check_names(&[node.to_owned()]).map_err(Failure::bad_input)?;
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| {
            format!("{}: this folder holds no authority; `seawall cluster init` makes one", path.display())
        })
    };
    let (key, certificate) = (read("ca.key").map_err(Failure::bad_input)?, read("ca.pem").map_err(Failure::bad_input)?);
    let issued = || -> Result<()> {
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key)?)?;
        certify(dir, node, &issuer)
    };
    issued().map_err(Failure::failed)
}

fn certify(dir: &Path, node: &str, issuer: &Issuer<'_, impl rcgen::SigningKey>) -> Result<()> {
    let key = KeyPair::generate()?;
    let parameters = parameters(node).map_err(|error| anyhow!(error))?;
    let certificate = parameters.signed_by(&key, issuer)?;
    let path = dir.join(format!("{node}.key"));
    platform::identity::write_private(&path, key.serialize_pem().as_bytes())
        .with_context(|| path.display().to_string())?;
    write(dir, &format!("{node}.pem"), certificate.pem().as_bytes())
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, bytes).with_context(|| path.display().to_string())
}
