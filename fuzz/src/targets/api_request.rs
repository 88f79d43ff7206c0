//! Requests on the local socket.

use secmesh::api::types::Request;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    [
        r#"{"request":"status"}"#,
        r#"{"request":"peers"}"#,
        r#"{"request":"alerts","limit":20}"#,
        r#"{"request":"decisions","all":true,"subject":"192.0.2.0/24"}"#,
        r#"{"request":"explain","subject":"2001:db8::7"}"#,
        r#"{"request":"block","subject":"192.0.2.7","ttl_s":600,"mesh":false,"reason":"b\u00e4d"}"#,
        r#"{"request":"unblock","subject":"192.0.2.7","signed":"AAAA"}"#,
        r#"{"request":"release_terms","subject":"192.0.2.7"}"#,
        r#"{"request":"allow_list"}"#,
        r#"{"request":"allow_add","prefix":"192.0.2.0/24","reason":"ours"}"#,
        r#"{"request":"allow_remove","prefix":"::/0"}"#,
        r#"{"request":"set_mode","mode":"enforce"}"#,
        r#"{"request":"invite_terms"}"#,
        r#"{"request":"open_grant","grant":"AAAA"}"#,
        r#"{"ttl_s":1e3,"request":"block","subject":"::ffff:1.2.3.4","mesh":true}"#,
    ]
    .iter()
    .map(|text| (*text).into())
    .collect()
}

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(request) = serde_json::from_str::<Request>(text) else {
        return;
    };
    let written = serde_json::to_string(&request);
    assert!(written.is_ok(), "{request:?}: {written:?}");
    let written = written.unwrap_or_default();
    assert!(!written.contains('\n'), "a request is one line: {written}");
    let again = serde_json::from_str::<Request>(&written);
    assert!(again.is_ok(), "not read back: {written}: {again:?}");
    // The type has no equality of its own; its debug form names every field.
    let again = again.map(|again| format!("{again:?}")).ok();
    assert_eq!(again, Some(format!("{request:?}")), "{written}");
}
