"""History, matching, window, exchange: functions over bytes and values."""
