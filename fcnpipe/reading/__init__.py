"""Reading of finished stores: sky coordinates, cone search, cutouts and exports."""
