"""Timelines, curves, bars and fabrics as SVG markup of our own; names are escaped here."""
