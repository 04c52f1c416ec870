"""What everything stands on: names, errors, plain values, quantities, and spans of time."""
