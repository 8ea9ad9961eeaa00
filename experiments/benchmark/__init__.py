"""How close to the speed of memory kvjax decodes, and how its peers do."""
