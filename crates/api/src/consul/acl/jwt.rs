//! Whether a JSON Web Token (RFC 7519) is signed by somebody who is believed, now, and for us: Consul's `jwt` with keys that are
//! written down. What is not supported is refused when a way to log in is made, so that one that is there works.
//! Deliberately absent: keys fetched from elsewhere, which a login would have to wait for.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use discovery::acl::records::JwtConfig;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use serde_json::{Map, Value};

/// The longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;
/// The longest key, in bytes.
const MAX_KEY_BYTES: usize = 8 << 10;
/// Signatures that can be checked.
pub const ALGORITHMS: [&str; 9] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

const RSA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: [u8; 5] = [0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519: [u8; 3] = [0x2b, 0x65, 0x70];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// A public key as `ring` takes it.
struct Key {
    family: Family,
    bytes: Vec<u8>,
}

/// Looks at a key before it is kept.
///
/// # Errors
/// What is wrong with it.
pub fn check_key(pem: &str) -> Result<(), String> {
    key_of(pem).map(drop)
}

fn key_of(pem: &str) -> Result<Key, String> {
    if pem.len() > MAX_KEY_BYTES {
        return Err(format!("a key has {MAX_KEY_BYTES} bytes at most"));
    }
    let inner =
        pem.split_once("-----BEGIN PUBLIC KEY-----").and_then(|(_, rest)| rest.split_once("-----END PUBLIC KEY-----"));
    let (inner, _) = inner.ok_or("a public key in PEM is expected, which begins with -----BEGIN PUBLIC KEY-----")?;
    let text: String = inner.chars().filter(|c| !c.is_whitespace()).collect();
    let der = STANDARD.decode(text).map_err(|_| "this key is no base64")?;
    subject_key(&der).ok_or_else(|| "this is no RSA, P-256, P-384 or Ed25519 key".to_owned())
}

/// Of a `SubjectPublicKeyInfo` (RFC 5280, 4.1).
fn subject_key(der: &[u8]) -> Option<Key> {
    let (whole, _) = part(0x30, der)?;
    let (algorithm, rest) = part(0x30, whole)?;
    let (bits, _) = part(0x03, rest)?;
    // The first byte says how many bits of the last one are unused: none.
    let bytes = bits.strip_prefix(&[0])?.to_vec();
    let (name, parameters) = part(0x06, algorithm)?;
    let curve = || part(0x06, parameters).map(|(curve, _)| curve);
    let family = match name {
        _ if name == RSA => Family::Rsa,
        _ if name == ED25519 => Family::Ed25519,
        _ if name == EC && curve()? == P256 => Family::P256,
        _ if name == EC && curve()? == P384 => Family::P384,
        _ => return None,
    };
    Some(Key { family, bytes })
}

/// The content of the first element, and what is behind it.
fn part(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(*rest.first()?) << 8 | usize::from(*rest.get(1)?), &rest[2..]),
        _ => return None,
    };
    (*first == tag && rest.len() >= length).then(|| rest.split_at(length))
}

fn algorithm(name: &str) -> Option<(Family, &'static dyn VerificationAlgorithm)> {
    Some(match name {
        "RS256" => (Family::Rsa, &signature::RSA_PKCS1_2048_8192_SHA256),
        "RS384" => (Family::Rsa, &signature::RSA_PKCS1_2048_8192_SHA384),
        "RS512" => (Family::Rsa, &signature::RSA_PKCS1_2048_8192_SHA512),
        "PS256" => (Family::Rsa, &signature::RSA_PSS_2048_8192_SHA256),
        "PS384" => (Family::Rsa, &signature::RSA_PSS_2048_8192_SHA384),
        "PS512" => (Family::Rsa, &signature::RSA_PSS_2048_8192_SHA512),
        "ES256" => (Family::P256, &signature::ECDSA_P256_SHA256_FIXED),
        "ES384" => (Family::P384, &signature::ECDSA_P384_SHA384_FIXED),
        "EdDSA" => (Family::Ed25519, &signature::ED25519),
        _ => return None,
    })
}

/// What a token claims, if it is believed at `now`, in seconds since the Unix epoch.
///
/// # Errors
/// Why it is not; never with a part of the token.
pub fn verify(config: &JwtConfig, token: &str, now: u64) -> Result<Map<String, Value>, String> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(format!("a token has {MAX_TOKEN_BYTES} bytes at most"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or("this is no JSON Web Token")?;
    let (head, claims) = signed.split_once('.').ok_or("this is no JSON Web Token")?;
    let head = object(head).ok_or("the head of the token cannot be read")?;
    let name = head.get("alg").and_then(Value::as_str).unwrap_or_default();
    let allowed =
        if config.algorithms.is_empty() { name == "RS256" } else { config.algorithms.iter().any(|one| one == name) };
    let known = if allowed { algorithm(name) } else { None };
    let (family, algorithm) = known.ok_or("the token is signed in a way that is not allowed (JWTSupportedAlgs)")?;
    // Extensions that must be understood are not.
    if head.contains_key("crit") {
        return Err("the token has extensions that must be understood".into());
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "the signature cannot be read")?;
    let keys = config.keys.iter().filter_map(|pem| key_of(pem).ok()).filter(|key| key.family == family);
    let believed =
        |key: Key| UnparsedPublicKey::new(algorithm, &key.bytes).verify(signed.as_bytes(), &signature).is_ok();
    if !keys.into_iter().any(believed) {
        return Err("no key of the auth method has signed this token".into());
    }
    let claims = object(claims).ok_or("the claims of the token cannot be read")?;
    in_time(config, &claims, now)?;
    for_us(config, &claims)?;
    Ok(claims)
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// A token has a beginning and an end, or gets them; clocks may differ (Consul's `ClockSkewLeeway`).
fn in_time(config: &JwtConfig, claims: &Map<String, Value>, now: u64) -> Result<(), String> {
    let moment = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            value.as_f64().filter(|at| *at >= 0.0).map(|at| Some(at as u64)).ok_or(format!("`{name}` is no time"))
        }
    };
    let (issued, begins, ends) = (moment("iat")?, moment("nbf")?, moment("exp")?);
    let latest = issued.max(begins);
    let ends_at = ends.or_else(|| latest.map(|latest| latest.saturating_add(config.expiration_leeway)));
    let Some(ends_at) = ends_at else { return Err("the token says neither `iat` nor `nbf` nor `exp`".into()) };
    let begins_at = begins.or(issued).unwrap_or_else(|| ends_at.saturating_sub(config.not_before_leeway));
    let skew = config.clock_skew_leeway;
    if now >= ends_at.saturating_add(skew) {
        return Err("the token is expired (`exp`)".into());
    }
    if now.saturating_add(skew) < begins_at || issued.is_some_and(|issued| now.saturating_add(skew) < issued) {
        return Err("the token is not valid yet (`nbf`, `iat`)".into());
    }
    Ok(())
}

fn for_us(config: &JwtConfig, claims: &Map<String, Value>) -> Result<(), String> {
    let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    if !config.bound_issuer.is_empty() && config.bound_issuer != issuer {
        return Err("the token is of another issuer (`iss`)".into());
    }
    let audience: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if config.bound_audiences.is_empty() {
        // As in Consul: what is for somebody in particular is not for anybody.
        return if audience.is_empty() {
            Ok(())
        } else {
            Err("the token has an `aud`, and no BoundAudiences are set".into())
        };
    }
    let is_bound = |one: &&str| config.bound_audiences.iter().any(|bound| bound == one);
    if audience.iter().any(is_bound) { Ok(()) } else { Err("the token is for somebody else (`aud`)".into()) }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use discovery::acl::records::JwtConfig;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use serde_json::{Value, json};

    use super::{check_key, verify};

    const NOW: u64 = 1_700_000_000;

    fn pem(head: &[u8], key: &[u8]) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode([head, key].concat()))
    }

    /// A key of P-256 and what it signs.
    fn signer() -> (String, impl Fn(&Value, &Value) -> String) {
        let random = SystemRandom::new();
        let kept = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, kept.as_ref(), &random).unwrap();
        let head = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
            0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        let public = pem(&head, pair.public_key().as_ref());
        let sign = move |head: &Value, claims: &Value| {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", part(head), part(claims));
            let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
        };
        (public, sign)
    }

    fn config(keys: &[&str]) -> JwtConfig {
        JwtConfig {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            algorithms: vec!["ES256".into()],
            expiration_leeway: 150,
            not_before_leeway: 150,
            clock_skew_leeway: 60,
            ..JwtConfig::default()
        }
    }

    #[test]
    fn only_what_a_known_key_has_signed_as_allowed_is_believed() {
        let ((own, sign), (other, _)) = (signer(), signer());
        let head = json!({ "alg": "ES256" });
        let token = sign(&head, &json!({ "sub": "web", "exp": NOW + 100 }));
        assert_eq!(verify(&config(&[&other, &own]), &token, NOW).unwrap()["sub"], "web");
        assert!(verify(&config(&[&other]), &token, NOW).unwrap_err().contains("no key"));
        let changed = sign(&head, &json!({ "sub": "root", "exp": NOW + 100 }));
        let parts = |token: &str| token.split('.').map(str::to_owned).collect::<Vec<_>>();
        let (mine, theirs) = (parts(&token), parts(&changed));
        let forged = format!("{}.{}.{}", mine[0], theirs[1], mine[2]);
        assert!(verify(&config(&[&own]), &forged, NOW).unwrap_err().contains("no key"));
        // `none`, and what is not allowed, is not even looked at.
        let unsigned = sign(&json!({ "alg": "none" }), &json!({ "exp": NOW + 100 }));
        assert!(verify(&config(&[&own]), &unsigned, NOW).unwrap_err().contains("not allowed"));
        let by_default = JwtConfig { algorithms: Vec::new(), ..config(&[&own]) };
        assert!(verify(&by_default, &token, NOW).unwrap_err().contains("not allowed"));
        let critical = sign(&json!({ "alg": "ES256", "crit": ["x"] }), &json!({ "exp": NOW + 100 }));
        assert!(verify(&config(&[&own]), &critical, NOW).unwrap_err().contains("extensions"));
        for garbage in ["", ".", "..", "a.b.c", "é.é.é", &"x".repeat(20_000)] {
            verify(&config(&[&own]), garbage, NOW).unwrap_err();
        }
    }

    #[test]
    fn its_time_its_issuer_and_its_audience_count() {
        let (own, sign) = signer();
        let sign = |claims: Value| sign(&json!({ "alg": "ES256" }), &claims);
        let plain = config(&[&own]);
        let bound = JwtConfig { bound_issuer: "me".into(), bound_audiences: vec!["us".into()], ..config(&[&own]) };
        for (config, claims, expected) in [
            (&plain, json!({ "exp": NOW - 59 }), true),
            (&plain, json!({ "exp": NOW - 60 }), false),
            (&plain, json!({ "iat": NOW - 200 }), true),
            (&plain, json!({ "iat": NOW - 210 }), false),
            (&plain, json!({ "nbf": NOW + 60 }), true),
            (&plain, json!({ "nbf": NOW + 61 }), false),
            (&plain, json!({ "iat": NOW + 61, "exp": NOW + 100 }), false),
            (&plain, json!({ "exp": "soon" }), false),
            (&plain, json!({}), false),
            (&plain, json!({ "exp": NOW + 9, "aud": "us" }), false),
            (&bound, json!({ "exp": NOW + 9, "iss": "me", "aud": ["they", "us"] }), true),
            (&bound, json!({ "exp": NOW + 9, "iss": "you", "aud": "us" }), false),
            (&bound, json!({ "exp": NOW + 9, "iss": "me", "aud": "they" }), false),
            (&bound, json!({ "exp": NOW + 9, "iss": "me" }), false),
        ] {
            assert_eq!(verify(config, &sign(claims.clone()), NOW).is_ok(), expected, "{claims}");
        }
    }

    #[test]
    fn keys_are_public_keys_and_nothing_else() {
        let kept = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(kept.as_ref()).unwrap();
        let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        check_key(&pem(&head, pair.public_key().as_ref())).unwrap();
        for wrong in [
            "",
            "key",
            "-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----",
            &pem(&[0x30, 0x82], &[]),
            &pem(&[0x30, 3, 0x30, 9, 1], &[]),
        ] {
            check_key(wrong).unwrap_err();
        }
    }
}
