/*
 * Files that are written whole. It includes nothing: the strict parser does not take a script with includes of its own that two others include.
 */

// A file is there whole or not at all.
def write_whole(path, text) {
    def part = path.resolveSibling(".${path.name}.part")
    part.setText(text, 'UTF-8')
    java.nio.file.Files.move(part, path, java.nio.file.StandardCopyOption.REPLACE_EXISTING)
}

def pretty(value) {
    return groovy.json.JsonOutput.prettyPrint(groovy.json.JsonOutput.toJson(value)) + '\n'
}
