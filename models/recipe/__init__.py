"""How the embedded model is made, from drawings to the folder that ships."""
