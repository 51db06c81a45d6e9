/*
 * PREFLIGHT: check every raw folder, the parameters, the weights and the machine before any work; all problems at once.
 *
 * in   samplesheet; samples ([id, raw_state]) and their raw folders in the same order; ids of those with annotated cells and these in the same order; all parameters as JSON;
 *      nextflow_schema.json;
 *      base model, weights of cellpose and of genesegnet, limits of the report's checks, lists of genes, each [] where there are none
 * out  preflight.json: the resolved samples
 */
process PREFLIGHT {
    tag "${samples.size()} samples"
    label 'process_gpu'

    input:
    path samplesheet, stageAs: 'input/samplesheet.csv'
    val samples
    path raw, stageAs: 'input/raw?', arity: '1..*'
    val annotated
    path annotations, stageAs: 'input/annotations?', arity: '0..*'
    val settings
    path schema, stageAs: 'input/schema.json'
    path base_model, stageAs: 'input/model/*'
    path nuclei_weights, stageAs: 'input/nuclei_weights'
    path cyto_weights, stageAs: 'input/cyto_weights'
    path genesegnet_weights, stageAs: 'input/genesegnet/*'
    path limits, stageAs: 'input/limits.yaml'
    path marker_pairs, stageAs: 'input/marker_pairs.csv'
    path markers, stageAs: 'input/markers.csv'

    output:
    path 'preflight.json', emit: json
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions
    tuple val(task.process), val('python'), eval('python -c "import platform; print(platform.python_version())"'), topic: versions
    tuple val(task.process), val('torch'), eval('python -c "import importlib.metadata as m; print(m.version(\'torch\'))"'), topic: versions
    tuple val(task.process), val('cellpose'), eval('python -c "import importlib.metadata as m; print(m.version(\'cellpose\'))"'), topic: versions
    tuple val(task.process), val('spatialdata'), eval('python -c "import importlib.metadata as m; print(m.version(\'spatialdata\'))"'), topic: versions
    tuple val(task.process), val('anndata'), eval('python -c "import importlib.metadata as m; print(m.version(\'anndata\'))"'), topic: versions
    tuple val(task.process), val('scanpy'), eval('python -c "import importlib.metadata as m; print(m.version(\'scanpy\'))"'), topic: versions

    script:
    def folders = [samples, raw].transpose().collect { sample, folder -> "--raw ${sample.id}=${folder}" }.join(' ')
    def truths = [annotated, annotations].transpose().collect { sample, truth -> "--annotations ${sample}=${truth}" }.join(' ')
    // The shell's pattern stands for the one file there, whatever its name.
    def checked = [
        base_model ? '--model input/model/*' : '',
        nuclei_weights ? "--nuclei-weights ${nuclei_weights}" : '',
        cyto_weights ? "--cyto-weights ${cyto_weights}" : '',
        genesegnet_weights ? '--genesegnet-weights input/genesegnet/*' : '',
        limits ? "--limits ${limits}" : '',
        marker_pairs ? "--marker-pairs ${marker_pairs}" : '',
        markers ? "--markers ${markers}" : '',
    ].join(' ')
    // As base64 because values of users may hold anything; as a value and not a file so that -resume compares the content.
    def encoded = settings.getBytes('UTF-8').encodeBase64().toString()
    """
    echo ${encoded} | base64 -d > params.json
    istseg --expect-version ${workflow.manifest.version} preflight --samplesheet input/samplesheet.csv ${folders} ${truths} --params params.json --schema input/schema.json ${checked} --disk . --out . ${task.ext.args ?: ''}
    """

    stub:
    """
    echo '{"samples": []}' > preflight.json
    """
}
