/*
 * istseg: raw MERSCOPE, CosMx and Xenium folders in; cells, counts and one report out.
 * Reads parameters and samplesheet, checks them, runs the road (workflows/istseg.nf), writes the report and says how it ended.
 */
include { CANARY ; canary_table } from './workflows/canary'
include { ISTSEG } from './workflows/istseg'
include { REPORT } from './modules/report/main'
include { changed_raw ; check_params ; check_site ; help_text ; plain_params ; raw_files_of ; raw_record ; read_samplesheet ; read_schema ; refuse ; resolve ; state_of } from './workflows/checks'
include { pretty ; write_whole } from './workflows/files'
include { write_manifest } from './workflows/manifest'
include { closing_words ; failures_of ; mark_failed ; run_record ; this_run } from './workflows/summary'
include { tasks_of } from './workflows/trace'

workflow {
    main:
    schema_file = file("${projectDir}/nextflow_schema.json")
    schema = read_schema(schema_file)
    if (params.help) {
        println(help_text(schema))
    }
    else if (params.canary) {
        refuse(check_site(plain_params(params, schema)))
        CANARY()
        canary_trace = file(nextflow.Global.session.config.trace.file, glob: false)
        workflow.onComplete = {
            println("\n${canary_table(canary_trace, params.outdir)}")
        }
    }
    else {
        settings = plain_params(params, schema)
        problems = params.validate_params ? check_params(settings, schema) : []
        sheet = params.input ? file(params.input, glob: false) : null
        (rows, wrong) = sheet && sheet.exists() && !sheet.isDirectory() ? read_samplesheet(sheet, read_schema(file("${projectDir}/assets/schema_input.json"))) : [[], []]
        refuse(problems + wrong)

        raw_files = rows.collectEntries { row -> [row.sample, raw_files_of(resolve(row.path, sheet.parent))] }
        refuse(workflow.resume && params.check_changed_raw ? raw_files.collectMany { name, files -> changed_raw(name, files, params.outdir) } : [])

        // Tasks run elsewhere, so they need the whole path; containers have a program of their own.
        baysor = params.baysor ? file(params.baysor, glob: false).toString() : null

        // e.g. [[id: 'brain_1', platform: 'merscope', z_planes: '1-5'], /data/brain_1/region_0]
        samples = rows.collect { row ->
            def raw = resolve(row.path, sheet.parent)
            [[id: row.sample, raw_state: state_of(raw_files[row.sample])] + row.findAll { name, value -> !(name in ['sample', 'path', 'annotations', 'annotations_unit']) }, raw]
        }
        // [meta, file or [], unit or '']; no part of meta, so that new annotations make compare run again and nothing else.
        annotations = [samples, rows].transpose().collect { sample, row ->
            [sample[0], row.annotations ? resolve(row.annotations, sheet.parent) : [], row.annotations_unit ?: '']
        }
        limits = params.qc_thresholds ? file(params.qc_thresholds, glob: false) : []
        // From the configuration, because -with-trace may have moved it.
        trace = file(nextflow.Global.session.config.trace.file, glob: false)

        ISTSEG(
            sheet,
            channel.fromList(samples),
            channel.fromList(annotations),
            groovy.json.JsonOutput.toJson(baysor ? settings + [baysor: baysor] : settings),
            schema_file,
            [
                tiles_per_task: params.tiles_per_task,
                task_minutes: params.task_minutes,
                teacher: params.teacher,
                nuclei_weights: params.nuclei_weights ? file(params.nuclei_weights, glob: false) : [],
                cyto_weights: params.cyto_weights ? file(params.cyto_weights, glob: false) : [],
                genesegnet_weights: 'genesegnet' in params.compare.tokenize(',') && params.genesegnet_weights ? file(params.genesegnet_weights, glob: false) : [],
                base_model: params.base_model == 'scratch' ? [] : file(params.base_model, glob: false),
                finetune: params.finetune,
                coexpression: params.coexpression,
                // The run's teacher, asked for by its own name, is not computed twice.
                compare: params.compare == 'none' ? [] : params.compare.tokenize(',').collect { name -> name == params.teacher && name != 'vendor' ? 'teacher' : name }.unique(),
                proseg_init: params.proseg_init,
                baysor: baysor && !workflow.containerEngine ? baysor : 'baysor',
                exports: params.exports != 'none',
                limits: limits,
                marker_pairs: params.marker_pairs ? file(params.marker_pairs, glob: false) : [],
                markers: params.markers ? file(params.markers, glob: false) : [],
            ],
        )

        // Beside what is made from them, so that a later -resume into this folder can tell whether they changed.
        ISTSEG.out.converted.subscribe { meta, json ->
            if (raw_files[meta.id]) {
                def record = raw_record(params.outdir, meta.id)
                record.parent.mkdirs()
                write_whole(record, pretty([files: raw_files[meta.id]]))
            }
        }

        // The topic ends when all tasks have ended, so the record knows all failures. It waits for preflight's file: without it there is nothing to report.
        versions = channel.topic('versions').unique().toSortedList { a, b -> a.toString() <=> b.toString() }
        run_json = ISTSEG.out.preflight
            .combine(versions.map { all -> [all] })
            .map { preflight, all -> ['run.json', run_record(samples, settings, schema, all, trace)] }
            .collectFile(storeDir: "${params.outdir}/pipeline_info")
        REPORT(run_json, ISTSEG.out.preflight.mix(ISTSEG.out.records).toList(), limits)

        workflow.onComplete = {
            def failures = failures_of(tasks_of(trace))
            mark_failed(rows.collect { row -> row.sample }, workflow, params.outdir, failures)
            // What is published is whole now. Without a run.json of this run nothing was run.
            def record = file("${params.outdir}/pipeline_info/run.json", glob: false)
            def unwritten = null
            if (this_run(record, workflow)) {
                try {
                    write_manifest(file(params.outdir, glob: false), record, read_schema(file("${projectDir}/assets/outputs.json")), workflow, params.checksums)
                }
                catch (Exception problem) {
                    unwritten = "outputs.json, checksums.sha256 and ro-crate-metadata.json could not be written: ${problem}"
                }
            }
            println("\n${closing_words(workflow, params.outdir, failures)}${unwritten ? "\nWARNING: ${unwritten}" : ''}")
        }
    }
}
