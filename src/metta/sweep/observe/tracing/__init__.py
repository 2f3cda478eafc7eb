"""Where the time of a sweep goes: spans by OpenTelemetry, where somebody asks for them."""
