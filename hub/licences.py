"""What each licence demands of a model that is published again in changed form, as its text and the Hub's documentation say."""

from __future__ import annotations

from dataclasses import dataclass

AGREEMENTS = ("LICENSE*", "LICENCE*", "COPYING*", "license*")
TEXTS = (*AGREEMENTS, "NOTICE*", "Notice*", "notice*")
POLICIES = ("USE_POLICY*", "*use_policy*", "*USE_POLICY*", "*Use_Policy*")
_LLAMA = "https://www.llama.com/{}/license/"


@dataclass(frozen=True, kw_only=True)
class LicenceDemands:
    """What a release under a licence must show.

    `prefix` begins its name; `badge` stands on its card; `notice` is the text of its NOTICE file ("" for none); `agreement`: it must
    hold a copy of the licence's own text, carried over from the base; `restrictions` is the sentence that passes use restrictions on;
    `carry` are patterns of the base's files that go along where they exist; `link` leads to the text.
    """

    license: str
    prefix: str = ""
    badge: str = ""
    notice: str = ""
    agreement: bool = False
    restrictions: str = ""
    carry: tuple[str, ...] = TEXTS
    link: str = ""


def _llama(version: str, *, prefix: str = "Llama", badge: str = "Built with Llama", product: str = "", owner: str = "©") -> LicenceDemands:
    product = product or f"Llama {version}"
    return LicenceDemands(
        license=f"llama{version}",
        prefix=prefix,
        badge=badge,
        notice=f"{product} is licensed under the {product} Community License, Copyright {owner} Meta Platforms, Inc. All Rights Reserved.",
        agreement=True,
        restrictions=f"Use must follow the {product} Acceptable Use Policy, which is part of the licence.",
        carry=TEXTS + POLICIES,
        link=_LLAMA.format(f"llama{version.replace('.', '_')}"),
    )


def _rail(license_id: str, link: str) -> LicenceDemands:
    return LicenceDemands(
        license=license_id,
        agreement=True,
        restrictions="The use restrictions of the base model's licence hold for this model too and are passed on with it.",
        link=link,
    )


_DEMANDS = {
    demand.license: demand
    for demand in (
        _llama("2", prefix="", badge="", product="Llama 2", owner="(c)"),
        _llama("3", prefix="Llama-3", badge="Built with Meta Llama 3", product="Meta Llama 3"),
        _llama("3.1"),
        _llama("3.2"),
        _llama("3.3"),
        _llama("4"),
        LicenceDemands(
            license="gemma",
            notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
            agreement=True,
            restrictions="Use is restricted by section 3.2 of the Gemma Terms of Use and by the Gemma Prohibited Use Policy, "
            "which bind every recipient.",
            carry=TEXTS + POLICIES,
            link="https://ai.google.dev/gemma/terms",
        ),
        LicenceDemands(
            license="qwen",
            badge="Built with Qwen",
            notice="Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved.",
            agreement=True,
        ),
        _rail("openrail", "https://huggingface.co/blog/open_rail"),
        _rail("creativeml-openrail-m", "https://huggingface.co/spaces/CompVis/stable-diffusion-license"),
        _rail("bigscience-openrail-m", "https://bigscience.huggingface.co/blog/bigscience-openrail-m"),
        _rail("bigscience-bloom-rail-1.0", "https://huggingface.co/spaces/bigscience/license"),
        LicenceDemands(license="apache-2.0", link="https://www.apache.org/licenses/LICENSE-2.0"),
        LicenceDemands(license="cc-by-4.0", link="https://creativecommons.org/licenses/by/4.0/"),
        LicenceDemands(license="psf-2.0", link="https://docs.python.org/3/license.html"),
    )
}


def effective(license_id: str | None, license_name: str | None) -> str | None:
    """Return the id that counts: the Hub's `license`, or its `license_name` where that is `other`; lower case."""
    if license_id and license_id.lower() == "other":
        return license_name.lower() if license_name else "other"
    return license_id.lower() if license_id else None


def demands(license_id: str | None, license_name: str | None = None) -> LicenceDemands:
    """Return what a licence demands; one without special demands wants its text and notices carried over where they exist."""
    counts = effective(license_id, license_name) or ""
    return _DEMANDS.get(counts, LicenceDemands(license=counts))
