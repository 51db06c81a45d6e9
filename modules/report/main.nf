/*
 * REPORT: one self-contained HTML page over all samples, failed ones too.
 *
 * in   run.json; the records of all samples (known by file name and content); YAML with limits of checks or []
 * out  report.html, report.json; metrics.tsv and istseg_mqc.json: the measures of all segmentations for other tools
 */
process REPORT {
    tag "all samples"
    label 'process_low'

    input:
    path run_json, stageAs: 'input/run.json'
    path results, stageAs: 'input/results/?/*'
    path limits, stageAs: 'input/results/qc_thresholds.yaml'

    output:
    path 'report.html', emit: html
    path 'report.json', emit: json
    path '{metrics.tsv,istseg_mqc.json}', arity: '2', emit: tables
    // Not in the topic: run.json waits for the topic's end, so the report would wait for itself.
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions

    script:
    """
    mkdir -p input/results
    istseg --expect-version ${workflow.manifest.version} report --run-json ${run_json} --results input/results --out . ${task.ext.args ?: ''}
    """

    stub:
    """
    echo '<html></html>' > report.html
    echo '{}' | tee istseg_mqc.json > report.json
    touch metrics.tsv
    """
}
