"""Content-Formats as MQTT Content Types: the IANA registry "CoAP Content-Formats" as a table.

Formats with a content coding (11050, 11060: deflate) are left out on purpose: a Content Type
alone would promise plain JSON or CBOR.
"""

from __future__ import annotations

TEXT = 0
LINK_FORMAT = 40
JSON = 50
CBOR = 60

CONTENT_TYPES: dict[int, str] = {
    0: "text/plain; charset=utf-8",
    16: 'application/cose; cose-type="cose-encrypt0"',
    17: 'application/cose; cose-type="cose-mac0"',
    18: 'application/cose; cose-type="cose-sign1"',
    19: "application/ace+cbor",
    21: "image/gif",
    22: "image/jpeg",
    23: "image/png",
    40: "application/link-format",
    41: "application/xml",
    42: "application/octet-stream",
    47: "application/exi",
    50: "application/json",
    51: "application/json-patch+json",
    52: "application/merge-patch+json",
    60: "application/cbor",
    61: "application/cwt",
    62: "application/multipart-core",
    63: "application/cbor-seq",
    64: "application/edhoc+cbor-seq",
    65: "application/cid-edhoc+cbor-seq",
    96: 'application/cose; cose-type="cose-encrypt"',
    97: 'application/cose; cose-type="cose-mac"',
    98: 'application/cose; cose-type="cose-sign"',
    101: "application/cose-key",
    102: "application/cose-key-set",
    110: "application/senml+json",
    111: "application/sensml+json",
    112: "application/senml+cbor",
    113: "application/sensml+cbor",
    114: "application/senml-exi",
    115: "application/sensml-exi",
    140: "application/yang-data+cbor; id=sid",
    256: "application/coap-group+json",
    257: "application/concise-problem-details+cbor",
    258: "application/swid+cbor",
    259: "application/pkixcmp",
    260: "application/yang-sid+json",
    261: "application/ace-groupcomm+cbor",
    271: "application/dots+cbor",
    272: "application/missing-blocks+cbor-seq",
    280: "application/pkcs7-mime; smime-type=server-generated-key",
    281: "application/pkcs7-mime; smime-type=certs-only",
    284: "application/pkcs8",
    285: "application/csrattrs",
    286: "application/pkcs10",
    287: "application/pkix-cert",
    290: "application/aif+cbor",
    291: "application/aif+json",
    310: "application/senml+xml",
    311: "application/sensml+xml",
    320: "application/senml-etch+json",
    322: "application/senml-etch+cbor",
    340: "application/yang-data+cbor",
    341: "application/yang-data+cbor; id=name",
    432: "application/td+json",
    433: "application/tm+json",
    10000: "application/vnd.ocf+cbor",
    10001: "application/oscore",
    10002: "application/javascript",
    11542: "application/vnd.oma.lwm2m+tlv",
    11543: "application/vnd.oma.lwm2m+json",
    11544: "application/vnd.oma.lwm2m+cbor",
    20000: "text/css",
    30000: "image/svg+xml",
}
"""Content-Format -> Content Type, as the registry spells it."""


def _normal(content_type: str) -> str:
    """Spaces around `;` and letter case mean nothing (RFC 9110 section 8.3.1)."""
    return ";".join(part.strip() for part in content_type.lower().split(";"))


_FORMATS = {_normal(content_type): number for number, content_type in CONTENT_TYPES.items()}
_FORMATS["text/plain"] = TEXT


def content_format(content_type: str) -> int | None:
    """The Content-Format of an MQTT Content Type; None: the registry has none."""
    return _FORMATS.get(_normal(content_type))
