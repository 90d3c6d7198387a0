//! Logging in with a signed word of somebody who is believed.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::{DENY, call, get, management, ok, policy, put, refused};
use crate::support::Seawall;

/// Somebody who signs.
struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Self {
        let kept = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(kept.as_ref()).unwrap())
    }

    fn key(&self) -> String {
        let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let der = [&head[..], self.0.public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    fn sign(&self, claims: &Value) -> String {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let mut claims = claims.clone();
        (claims["iat"], claims["exp"]) = (json!(now), json!(now + 600));
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "EdDSA" })), part(&claims));
        let signature = self.0.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

#[test]
fn whoever_shows_a_signed_word_gets_what_the_binding_rules_say_until_it_is_given_back() {
    let seawall = Seawall::up(DENY);
    let root = management(&seawall);
    let issuer = Issuer::new();
    let method = json!({
        "Name": "ci", "Type": "jwt", "MaxTokenTTL": "1h",
        "Config": {
            "JWTValidationPubKeys": [issuer.key()], "JWTSupportedAlgs": ["EdDSA"], "BoundIssuer": "forge",
            "ClaimMappings": { "project": "project" }, "ListClaimMappings": { "groups": "groups" },
        },
    });
    ok(&put(&seawall, &root, "/v1/acl/auth-method", &method));
    policy(&seawall, "deployers", "event \"deploy\" { policy = \"write\" }");
    let rule = |selector: &str, kind: &str, name: &str| {
        let rule = json!({ "AuthMethod": "ci", "Selector": selector, "BindType": kind, "BindName": name });
        ok(&put(&seawall, &root, "/v1/acl/binding-rule", &rule));
    };
    rule("", "service", "${value.project}");
    rule("ops in list.groups", "policy", "deployers");
    let login = |bearer: &str| {
        let body = json!({ "AuthMethod": "ci", "BearerToken": bearer, "Meta": { "job": "7" } });
        call(&seawall, "", "POST", "/v1/acl/login", &body)
    };
    let made = ok(&login(&issuer.sign(&json!({ "iss": "forge", "project": "web", "groups": ["ops"] }))));
    assert_eq!((&made["AuthMethod"], &made["Local"]), (&json!("ci"), &json!(true)));
    assert!(made["ExpirationTime"].is_string() && made["Description"].as_str().unwrap().contains("job"), "{made}");
    let secret = made["SecretID"].as_str().unwrap().to_owned();
    ok(&put(&seawall, &secret, "/v1/agent/service/register", &json!({ "Name": "web" })));
    refused(&put(&seawall, &secret, "/v1/agent/service/register", &json!({ "Name": "db" })), "'service:write'");
    ok(&put(&seawall, &secret, "/v1/event/fire/deploy", &Value::Null));
    // Others get less, or nothing.
    let less = ok(&login(&issuer.sign(&json!({ "iss": "forge", "project": "web" }))));
    let less = less["SecretID"].as_str().unwrap().to_owned();
    refused(&put(&seawall, &less, "/v1/event/fire/deploy", &Value::Null), "'event:write'");
    let claims = json!({ "iss": "forge", "project": "web" });
    refused(&login(&Issuer::new().sign(&claims)), "no key of the auth method has signed this token");
    refused(&login(&issuer.sign(&json!({ "iss": "other", "project": "web" }))), "of another issuer");
    refused(&login(&issuer.sign(&json!({ "iss": "forge", "project": "We\"b" }))), "invalid bind name");
    refused(&login("nonsense"), "no JSON Web Token");
    // Given back, it is gone; what no login made is not given back.
    ok(&call(&seawall, &secret, "POST", "/v1/acl/logout", &Value::Null));
    refused(&get(&seawall, &secret, "/v1/acl/token/self"), "ACL not found");
    refused(&call(&seawall, &root, "POST", "/v1/acl/logout", &Value::Null), "wasn't created via login");
    // With the way to log in go its rules and its tokens.
    ok(&call(&seawall, &root, "DELETE", "/v1/acl/auth-method/ci", &Value::Null));
    refused(&get(&seawall, &less, "/v1/acl/token/self"), "ACL not found");
    assert_eq!(ok(&get(&seawall, &root, "/v1/acl/binding-rules")), json!([]));
    refused(&login(&issuer.sign(&claims)), "auth method \"ci\" not found");
    // A way by which nobody could log in is not made.
    for (kind, config, why) in [
        ("kubernetes", json!({}), "`jwt` is the only one here"),
        ("jwt", json!({}), "JWTValidationPubKeys is missing"),
        ("jwt", json!({ "JWTValidationPubKeys": ["key"] }), "a public key in PEM is expected"),
        ("jwt", json!({ "JWKSURL": "https://x.example" }), "Config.JWKSURL is not supported"),
        (
            "jwt",
            json!({ "JWTValidationPubKeys": [issuer.key()], "JWTSupportedAlgs": ["ES512"] }),
            "\"ES512\" is not one of",
        ),
        ("jwt", json!({ "JWTValidationPubKeys": [issuer.key()], "BoundIsuer": "x" }), "did you mean"),
    ] {
        let answer =
            put(&seawall, &root, "/v1/acl/auth-method", &json!({ "Name": "x", "Type": kind, "Config": config }));
        assert_eq!((answer.status, answer.text().contains(why)), (400, true), "{}", answer.text());
    }
}
