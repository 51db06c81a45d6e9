/*
 * TRAIN: fine-tune the network on curated patches, then accept it or keep the base.
 *
 * in   name of the model (a sample or `cohort`); folders of patches; base weights, [] for training from scratch
 * out  model.safetensors; curves.json, decision.json, model_card.json; refused.safetensors where the base was kept after a training
 */
process TRAIN {
    tag "${meta.id}"
    label 'process_gpu'
    ext size: { meta.size }

    input:
    tuple val(meta), path(patches, stageAs: 'input/?/*', arity: '1..*')
    path base, stageAs: 'input/base/*'

    output:
    tuple val(meta), path("${meta.id}/model/model.safetensors"), emit: model
    tuple val(meta), path("${meta.id}/model/*.json", arity: '1..*'), emit: records
    tuple val(meta), path("${meta.id}/model/refused.safetensors"), emit: refused, optional: true
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def given = patches.collect { folder -> "--patches ${folder}" }.join(' ')
    // The shell's pattern stands for the one file there, whatever its name.
    """
    istseg --expect-version ${workflow.manifest.version} train ${given} --name ${meta.id} --base ${base ? 'input/base/*' : 'scratch'} --out ${meta.id}/model ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}/model
    touch ${meta.id}/model/model.safetensors
    for record in model_card curves decision; do
        echo '{"name": "${meta.id}"}' > ${meta.id}/model/\$record.json
    done
    """
}
