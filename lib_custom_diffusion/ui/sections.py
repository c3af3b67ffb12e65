"""The sections of the page of utilities that both faces have, in their order."""

from __future__ import annotations

from . import algebra_sections, convert_section, inspection_section, regularization_sections

SECTIONS = (
    *regularization_sections.SECTIONS,
    *algebra_sections.SECTIONS,
    *convert_section.SECTIONS,
    *inspection_section.SECTIONS,
)
