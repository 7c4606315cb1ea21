"""Reading finished stores."""
