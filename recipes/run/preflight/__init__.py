"""What a run needs of this machine, looked at before the first hour is spent."""
