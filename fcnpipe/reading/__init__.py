"""Reading of finished stores."""
