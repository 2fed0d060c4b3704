-- What makes the festival many tenants'.
select ringfence.distribute(t) from unnest(array[
  'people', 'venues', 'rooms', 'shows', 'posters', 'casting', 'labels', 'show_labels', 'notes',
  '"Großer Saal"', 'counts', 'archive.boxes', 'archive.shows'
]::regclass[]) t;
select ringfence.reference('kinds');
