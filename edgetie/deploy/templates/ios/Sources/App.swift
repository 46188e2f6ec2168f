import SwiftUI

@main
struct StarterApp: App {
    var body: some Scene {
        WindowGroup { ContentView() }
    }
}

/// Asks the model, outside the main thread.
@MainActor
final class Conversation: ObservableObject {
    @Published var answer = ""
    @Published var busy = false
    private var model: Model?

    func ask(_ prompt: String) {
        answer = ""
        busy = true
        let opened = model
        Task.detached {
            do {
                let model = try opened ?? Model(folder: Bundle.main.bundlePath)
                try model.answer(prompt, most: 256) { part in
                    Task { @MainActor in self.answer += part }
                    return true
                }
                print("run by \(model.provider)")
                await self.end(model, nil)
            } catch {
                await self.end(opened, error.localizedDescription)
            }
        }
    }

    private func end(_ model: Model?, _ problem: String?) {
        self.model = model
        if let problem { answer += "\n" + problem }
        busy = false
    }
}

struct ContentView: View {
    @StateObject private var conversation = Conversation()
    @State private var prompt = "What is the capital of France?"

    var body: some View {
        VStack(alignment: .leading) {
            TextField("Prompt", text: $prompt, axis: .vertical)
                .textFieldStyle(.roundedBorder)
            Button("Ask") { conversation.ask(prompt) }
                .disabled(conversation.busy)
            ScrollView {
                Text(conversation.answer)
                    .textSelection(.enabled)
                    .frame(maxWidth: .infinity, alignment: .leading)
            }
        }
        .padding()
    }
}
