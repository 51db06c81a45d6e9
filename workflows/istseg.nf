/*
 * The road: raw folders in, one report and one AnnData per sample out. Channels carry the sample's row of the samplesheet as `meta`, `meta.id` is its name.
 * A sample whose task fails drops out of the joins below and is missing from `records`; everything else goes on.
 */
include { PREFLIGHT } from '../modules/preflight/main'
include { CONVERT   } from '../modules/convert/main'
include { TILE      } from '../modules/tile/main'
include { TEACH     } from '../modules/teach/main'
include { CALIBRATE } from '../modules/calibrate/main'
include { CURATE    } from '../modules/curate/main'
include { TRAIN     } from '../modules/train/main'
include { SEGMENT   } from '../modules/segment/main'
include { MERGE     } from '../modules/merge/main'
include { ASSIGN    } from '../modules/assign/main'
include { ASSESS    } from '../modules/assess/main'
include { COMPARE   } from '../modules/compare/main'
include { COEXPRESSION } from '../modules/coexpression/main'
include { REGIONS   } from '../modules/regions/main'
include { EXPORT    } from '../modules/export/main'
include { COMPARATORS   } from './comparators'
include { tiles_of_a_task ; whole_samples } from './batches'

workflow ISTSEG {
    take:
    samplesheet // file
    samples     // channel of [meta, raw folder], in the order of the samplesheet
    annotations // channel of [meta, annotated cells or [], their unit or '']
    settings    // all parameters as JSON
    schema      // nextflow_schema.json
    options     // map: parameters that change the road

    main:
    listed = samples.toList()
    annotated = annotations.filter { meta, truth, unit -> truth }.toList()
    PREFLIGHT(samplesheet, listed.map { all -> all.collect { meta, raw -> meta.subMap('id', 'raw_state') } }, listed.map { all -> all.collect { meta, raw -> raw } }, annotated.map { all -> all.collect { meta, truth, unit -> meta.id } }, annotated.map { all -> all.collect { meta, truth, unit -> truth } }, settings, schema, options.base_model, options.nuclei_weights, options.cyto_weights, options.genesegnet_weights, options.limits, options.marker_pairs, options.markers)

    // Nothing starts before preflight passed; its file is no input, so that a new sample does not make the others run again. What it measured of a sample goes into `meta.size`, by
    // which tasks ask for memory and time.
    sizes_by_id = PREFLIGHT.out.json.map { json -> sizes_of(json) }
    sized = samples.combine(sizes_by_id).map { meta, raw, by_id -> [meta + [size: by_id[meta.id]], raw] }
    truths = annotations.combine(sizes_by_id).map { meta, truth, unit, by_id -> [meta + [size: by_id[meta.id]], truth, unit] }
    CONVERT(sized)
    TILE(CONVERT.out.sample.join(CONVERT.out.zarr))

    // e.g. [meta, 0, 3, [t000_000, t000_001]]: batch 0 of 3
    batches = TILE.out.tiles.flatMap { meta, tiles ->
        def groups = tiles.toSorted { tile -> tile.name }.collate(options.tiles_per_task ?: tiles_of_a_task(meta.size, options.task_minutes))
        groups.withIndex().collect { group, number -> [meta, number, groups.size(), group] }
    }
    tiles = batches.map { meta, number, n, group -> [meta, number, group] }
    sizes = batches.map { meta, number, n, group -> [meta, number, n] }

    // A sample without vendor cells goes on with []: teach then says what is wrong with it.
    vendor = options.teacher == 'vendor'
        ? CONVERT.out.sample.join(CONVERT.out.vendor_cells, remainder: true).map { meta, json, polygons -> [meta, polygons ?: []] }
        : CONVERT.out.sample.map { meta, json -> [meta, []] }
    TEACH(tiles.combine(vendor, by: 0), options.nuclei_weights, options.cyto_weights)
    CALIBRATE(whole_samples(TEACH.out.sketches, sizes))
    thresholds = CALIBRATE.out.thresholds
    CURATE(tiles.join(TEACH.out.labels, by: [0, 1]).combine(thresholds, by: 0))

    // [meta, weights] for each sample
    models = sized.map { meta, raw -> [meta, options.base_model] }
    trained = channel.empty()
    if (options.finetune != 'none') {
        lessons = options.finetune == 'sample' ? whole_samples(CURATE.out.patches, sizes) : cohort(whole_samples(CURATE.out.patches, sizes))
        TRAIN(lessons, options.base_model)
        trained = TRAIN.out.records
        models = options.finetune == 'sample' ? TRAIN.out.model : sized.map { meta, raw -> meta }.combine(TRAIN.out.model.map { meta, model -> model })
    }
    SEGMENT(tiles.combine(models, by: 0))
    MERGE(TILE.out.index.join(whole_samples(SEGMENT.out.cells, sizes)).join(whole_samples(TEACH.out.labels, sizes)).join(thresholds))

    // [meta, gene_colours.csv or []]
    colours = CONVERT.out.sample.map { meta, json -> [meta, []] }
    if (options.coexpression) {
        COEXPRESSION(CONVERT.out.sample.join(CONVERT.out.transcripts))
        // Colours are for the eye: a sample goes on without them.
        colours = CONVERT.out.sample.join(COEXPRESSION.out.colours, remainder: true).map { meta, json, table -> [meta, table ?: []] }
    }

    // [meta, segmentation, cells, label image or [], table of transcripts or outlines by plane or []]
    road = MERGE.out.istseg.join(MERGE.out.labels).map { meta, polygons, image -> [meta, 'istseg', polygons, image, []] }
    if ('teacher' in options.compare) {
        road = road.mix(MERGE.out.teacher.join(MERGE.out.labels).map { meta, polygons, image -> [meta, 'teacher', polygons, image, []] })
    }
    if ('vendor' in options.compare) {
        road = road.mix(CONVERT.out.vendor_cells.join(CONVERT.out.vendor_planes).map { meta, polygons, planes -> [meta, 'vendor', polygons, [], planes] })
    }
    COMPARATORS(
        [tiles: tiles, sizes: sizes, taught: TEACH.out.labels, index: TILE.out.index],
        [sample: CONVERT.out.sample, transcripts: CONVERT.out.transcripts, nuclei: MERGE.out.nuclei, labels: MERGE.out.labels, vendor_cells: CONVERT.out.vendor_cells],
        options,
    )
    cells = road.mix(COMPARATORS.out.cells)
    made = road.map { meta, segmentation, polygons, image, table -> [meta, segmentation] }.combine(MERGE.out.record, by: 0).mix(COMPARATORS.out.records)
    ASSIGN(cells.combine(CONVERT.out.sample, by: 0).combine(CONVERT.out.transcripts, by: 0))
    ASSESS(
        ASSIGN.out.counts
            .join(ASSIGN.out.transcripts, by: [0, 1])
            .map { meta, segmentation, counts, table -> [meta, segmentation, counts + [table]] }
            .join(cells.map { meta, segmentation, polygons, image, table -> [meta, segmentation, polygons] }, by: [0, 1])
            .join(made, by: [0, 1])
            .combine(CONVERT.out.sample.join(TILE.out.folder).join(MERGE.out.nuclei).join(thresholds).join(colours), by: 0),
        options.marker_pairs,
        options.markers,
    )
    // What was assigned of each sample, as soon as all of it is there. A sample where a segmentation failed waits until no task of ASSIGN is left. Sorted, so that -resume finds the task.
    asked = sized.combine(PREFLIGHT.out.json.map { json -> with_vendor_cells(json) }).map { meta, raw, has -> [meta, 1 + options.compare.count { name -> name != 'vendor' || has.getOrDefault(meta.id, true) }] }
    assigned = cells.map { values -> values.take(3) }
        .join(ASSIGN.out.transcripts, by: [0, 1])
        .combine(asked, by: 0)
        .map { meta, segmentation, polygons, table, n -> [groupKey(meta, n as int), [segmentation, polygons, table]] }
        .groupTuple(remainder: true)
        .map { key, all -> [key.getGroupTarget()] + all.toSorted { one -> one[0] }.transpose() }
    COMPARE(assigned.join(CONVERT.out.sample).join(truths).filter { values -> values[1].size() > 1 || values[5] })
    assessed = ASSESS.out.folder.filter { meta, segmentation, folder -> segmentation == 'istseg' }.map { meta, segmentation, folder -> [meta, folder] }
    REGIONS(assigned.map { values -> values.take(3) }.join(TILE.out.folder).join(MERGE.out.nuclei).join(assessed).join(colours))
    if (options.exports) {
        found = ASSIGN.out.transcripts.filter { meta, segmentation, table -> segmentation == 'istseg' }.map { meta, segmentation, table -> [meta, table] }
        merged = MERGE.out.istseg.join(MERGE.out.teacher).join(MERGE.out.nuclei).join(MERGE.out.labels).join(MERGE.out.record).map { values -> [values.head(), values.tail()] }
        EXPORT(CONVERT.out.sample.join(CONVERT.out.zarr).join(merged).join(assessed).join(found))
    }

    preflight = PREFLIGHT.out.json
    converted = CONVERT.out.sample
    records = CONVERT.out.sample
        .mix(TILE.out.index, thresholds, CURATE.out.counts, MERGE.out.record, ASSESS.out.folder, COMPARE.out.record, REGIONS.out.folder, trained)
        .flatMap { values -> values.last() instanceof Collection ? values.last() : [values.last()] }

    emit:
    preflight
    converted
    records
}

// Sample -> what preflight measured of it.
def sizes_of(json) {
    return new groovy.json.JsonSlurper().parse(json).samples.collectEntries { sample -> [sample.sample, sample.size] }
}

// A sample that preflight does not tell of (stub runs) has them.
def with_vendor_cells(json) {
    return new groovy.json.JsonSlurper().parse(json).samples.collectEntries { sample -> [sample.sample, sample.vendor_cells != null] }
}

// One lesson from the patches of all samples that are whole.
def cohort(patches) {
    return patches
        .toSortedList { a, b -> a[0].id <=> b[0].id }
        .filter { all -> all }
        .map { all -> [[id: 'cohort', size: null], all.collectMany { meta, folders -> folders }] }
}
