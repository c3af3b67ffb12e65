"""The sections of the page of utilities that both faces have, in their order."""

from __future__ import annotations

from . import algebra_sections, inspection_section, regularization_sections

SECTIONS = (*regularization_sections.SECTIONS, *algebra_sections.SECTIONS, *inspection_section.SECTIONS)
