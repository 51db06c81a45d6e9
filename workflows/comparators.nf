/*
 * Other ways to segment a sample, up to the form that all segmentations have. A comparator whose task fails drops out here; the sample goes on without it.
 */
include { COMPARATOR_TILES   } from '../modules/comparator_tiles/main'
include { COMPARATOR_MERGE   } from '../modules/comparator_merge/main'
include { COMPARATOR_PREPARE } from '../modules/comparator_prepare/main'
include { PROSEG             } from '../modules/proseg/main'
include { COMSEG             } from '../modules/comseg/main'
include { BAYSOR             } from '../modules/baysor/main'
include { COMPARATOR_COLLECT } from '../modules/comparator_collect/main'
include { whole_samples      } from './batches'

workflow COMPARATORS {
    take:
    by_tile   // map of channels: tiles [meta, batch, tiles], sizes [meta, batch, n], taught [meta, batch, labels of the teacher], index [meta, tiles.json]
    by_sample // map of channels [meta, file]: sample, transcripts, nuclei, labels, vendor_cells
    options   // map: parameters that change the road

    main:
    tile_wise = options.compare.intersect(['watershed', 'cellpose', 'expansion', 'genesegnet'])
    programs = options.compare.intersect(['proseg', 'comseg', 'baysor'])

    // Keys are [meta, method] from here on.
    lessons = by_tile.tiles.join(by_tile.taught, by: [0, 1]).combine(channel.fromList(tile_wise))
    COMPARATOR_TILES(lessons.map { meta, batch, tiles, taught, method -> [meta, method, batch, tiles, taught] }, options.nuclei_weights, options.cyto_weights, options.genesegnet_weights)
    labelled = COMPARATOR_TILES.out.labels.map { meta, method, batch, labels -> [[meta, method], batch, labels] }
    sizes = by_tile.sizes.combine(channel.fromList(tile_wise)).map { meta, batch, n, method -> [[meta, method], batch, n] }
    whole = whole_samples(labelled, sizes).map { key, labels -> key + [labels] }
    COMPARATOR_MERGE(whole.combine(by_tile.index, by: 0))

    // [meta, method, cells to start from or []]: preflight has seen that there are such cells.
    from_nuclei = by_sample.sample.map { meta, json -> [meta, []] }.combine(channel.fromList(programs.findAll { name -> name != 'proseg' || options.proseg_init == 'nuclei' }))
    from_cells = by_sample.vendor_cells.combine(channel.fromList(programs.findAll { name -> name == 'proseg' && options.proseg_init == 'vendor' }))
    start = from_nuclei.mix(from_cells).map { meta, cells, method -> [meta, method, cells] }
    converted = by_sample.sample.join(by_sample.transcripts)
    COMPARATOR_PREPARE(start.combine(converted.join(by_sample.nuclei).join(by_sample.labels), by: 0))
    given = COMPARATOR_PREPARE.out.folder.branch { meta, method, folder ->
        proseg: method == 'proseg'
        comseg: method == 'comseg'
        baysor: method == 'baysor'
    }
    PROSEG(given.proseg)
    COMSEG(given.comseg)
    BAYSOR(given.baysor, options.baysor)
    results = PROSEG.out.folder.mix(COMSEG.out.folder, BAYSOR.out.folder)
    COMPARATOR_COLLECT(COMPARATOR_PREPARE.out.folder.join(results, by: [0, 1]).combine(converted, by: 0))

    cells = COMPARATOR_MERGE.out.cells
        .join(COMPARATOR_MERGE.out.labels, by: [0, 1])
        .map { meta, method, polygons, image -> [meta, method, polygons, image, []] }
        .mix(COMPARATOR_COLLECT.out.cells.join(COMPARATOR_COLLECT.out.assignment, by: [0, 1]).map { meta, method, polygons, table -> [meta, method, polygons, [], table] })
    records = COMPARATOR_MERGE.out.record.mix(COMPARATOR_COLLECT.out.record)

    emit:
    cells   // [meta, segmentation, cells, label image or [], table of transcripts or []]
    records // [meta, segmentation, merge.json]
}
